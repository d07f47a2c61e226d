"""A solution as one web page that needs no network: what lies where, what is copied, and why."""

from upscale_opt.report.page import page

__all__ = ["page"]
