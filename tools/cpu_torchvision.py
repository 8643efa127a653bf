"""Let torchvision be imported beside a CPU build of torch.

    .venv/bin/python tools/cpu_torchvision.py        (part of `make env`)

On Linux the package index serves a torchvision whose compiled operators are linked against CUDA. With a CPU build of
torch they cannot be loaded, and `import torchvision` stops at "operator torchvision::nms does not exist": it attaches
Python code to two operators that were never declared. Data sets and transforms, all this project takes from
torchvision, use neither. So a hook in site-packages declares the two just before torchvision is imported, and only if
its library does not load. Nothing is done where the import works already, as in every CUDA environment;
`torchvision.ops.nms` and the image decoders of `torchvision.io` stay out of reach and say so when they are called.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

NAME = "_cpu_torchvision"
HOOK = '''\
"""Written by tools/cpu_torchvision.py; to undo it, delete this file and the .pth beside it."""
import sys
from importlib.machinery import PathFinder, SourceFileLoader

declared = []  # a Library takes its operators with it when it is collected


class Loader(SourceFileLoader):
    def exec_module(self, module):
        from pathlib import Path

        import torch

        try:
            for library in Path(self.path).parent.glob("_C*.so"):
                torch.ops.load_library(str(library))
        except OSError:
            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            declared.append(library)
        super().exec_module(module)


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = Loader(name, spec.origin)
        return spec


sys.meta_path.insert(0, Finder)
'''


def import_error() -> str:
    """What `import torchvision` writes to stderr where it fails, '' where it works."""
    run = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    return run.stderr if run.returncode else ""


def main() -> int:
    """Install the hook where it is needed; 0 if torchvision can be imported in the end."""
    error = import_error()
    if "operator torchvision::nms does not exist" in error:
        site = Path(sysconfig.get_path("purelib"))
        (site / f"{NAME}.py").write_text(HOOK)
        (site / f"{NAME}.pth").write_text(f"import {NAME}\n")
        error = import_error()
        if not error:
            print("torchvision: declared the operators that a CPU build of torch leaves out")
    sys.stderr.write(error)
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main())
