"""Rules for operations of your own: give them, and test what they claim."""

from __future__ import annotations

from upscale_opt.errors import RuleError
from upscale_opt.tracing.checking import check_rules
from upscale_opt.tracing.claims import Claim
from upscale_opt.tracing.rules import Call, local_rules, rule

__all__ = ["Call", "Claim", "RuleError", "check_rules", "local_rules", "rule"]
