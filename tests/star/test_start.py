"""What a start of `star sample` must not wait for: the libraries that drawing a picture has no use for."""

import json
import subprocess
import sys
from pathlib import Path

HEAVY = (
    *("transformers", "accelerate", "torchmetrics", "webdataset", "huggingface_hub", "matplotlib", "scipy", "sklearn"),
    *("torch._dynamo", "torch._inductor", "sympy"),
)
CODE = """
import sys, json
from star.cli import main
code = main(sys.argv[1:])
print(json.dumps([code, sorted({name for name in sys.modules})]))
"""


def test_drawing_loads_torch_and_little_more(tmp_path: Path) -> None:
    command = ["sample", "a red apple", "--model", "star-emoji", "--out", str(tmp_path), "--device", "cpu"]
    told = subprocess.run([sys.executable, "-c", CODE, *command], capture_output=True, text=True, check=True).stdout
    code, loaded = json.loads(told.splitlines()[-1])
    assert code == 0
    assert (tmp_path / "a-red-apple-0.png").exists()
    assert "torch" in loaded
    assert set(HEAVY) & set(loaded) == set()
