"""An example of every command, shown at the end of its help."""

from __future__ import annotations

EXAMPLES = {
    "inspect": "upscale-opt inspect resnet18",
    "prune": "upscale-opt prune shop.models:classifier --weights best.pt --input 1x3x224x224 "
    "--latency 0.6 --data photographs/ --export onnx",
    "report": "upscale-opt report solution.json --out report.html",
    "bench": "upscale-opt bench shop.models:classifier --weights best.pt --input 1x3x224x224 "
    "--batch 1 8 --variants unpruned copies floor",
    "calibrate": "upscale-opt calibrate resnet50 densenet121 --out mine.json",
    "run": "upscale-opt run resnet18 --layers conv --out out/resnet18",
    "trace": "upscale-opt trace resnet18 --out graph.json --masks masks.json",
    "solve": "upscale-opt solve graph.json masks.json --out solution.json",
    "check": "upscale-opt check graph.json masks.json solution.json",
    "explain": "upscale-opt explain solution.json layer1_1_conv1",
    "removed": "upscale-opt removed graph.json masks.json solution.json",
    "compare": "upscale-opt compare --graph graph.json --masks masks.json --solver cp-sat greedy",
    "pareto": "upscale-opt pareto resnet18 --budgets 0 0.05 0.1 --out front.json",
    "coverage": "upscale-opt coverage resnet18 mobilenet_v2 --amount 0.5",
    "models": "upscale-opt models 'resnet*'",
    "serve": "upscale-opt serve --port 8000 --workers 2",
    "worker": "upscale-opt worker --data jobs/",
}
"""By command."""
