"""Execute the notebooks, each in a kernel of its own and in a new folder, and keep their outputs.

    python examples/run.py                                      # all of them, in place
    python examples/run.py examples/notebooks/digits.ipynb      # some
    python examples/run.py --out FOLDER                         # leave these as they are, write to FOLDER

It ends with an error if a cell fails. The outputs kept are texts and pictures, without times or names of this computer.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

NOTEBOOKS = Path(__file__).parent / "notebooks"

#: Of pictures: pixels on the longer side, and colours.
WIDEST, COLOURS = 1000, 80

#: Seconds that a cell may take.
TIMEOUT = 600


def execute(path: Path) -> NotebookNode:
    """The notebook with the outputs of a fresh kernel of this Python, in a folder that is removed afterwards.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        commands = str(Path(sys.executable).parent)  # where ndm is
        here = {
            "PATH": os.pathsep.join([commands, os.environ.get("PATH", "")]),
            "IPYTHONDIR": str(Path(folder) / ".ipython"),  # not what this user has set up
            "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's, which would like to have ipywidgets for its bars
        }
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            coalesce_streams=True,
        )
        kernel = client.create_kernel_manager()
        kernel.transport, kernel.ip = "ipc", str(Path(folder) / "kernel")  # files in place of open ports
        client.execute(env={**os.environ, **here})
    return cleaned(notebook)


def cleaned(notebook: NotebookNode) -> NotebookNode:
    """Without what differs from one execution to the next, times and versions, and with small pictures."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            picture = output.get("data", {}).get("image/png")
            if picture:
                output.data["image/png"] = smaller(picture)
    return notebook


def smaller(picture: str) -> str:
    """A PNG picture in base64, in so few colours and points that it can be kept with the text."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.thumbnail((WIDEST, WIDEST))
    written = io.BytesIO()
    image.quantize(COLOURS).save(written, "png", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all in examples/notebooks")
    parser.add_argument("--out", type=Path, help="a folder to write to; default: in place")
    options = parser.parse_args()
    for path in options.notebooks or sorted(NOTEBOOKS.glob("*.ipynb")):
        began = time.perf_counter()
        notebook = execute(path)
        out = path if options.out is None else options.out / path.name
        out.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, out)
        print(f"{out}: {time.perf_counter() - began:.0f} s, {out.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
