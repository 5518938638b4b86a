"""The API reference: every name in a module's ``__all__``, and references that find a name wherever it is documented.

``{public} ndm.method.schedules`` documents a module. What ``ndm`` itself exports is documented as ndm.X, and what a
package exports as ndm.data.X, since that is how they are written; :func:`public_name` says which. ``{names}`` lists
them.
"""

from __future__ import annotations

import importlib
import inspect
import re
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

import ndm

#: The modules, besides ``ndm`` itself, whose names a user is to know.
PUBLIC = (
    "data", "networks", "training", "evaluation", "evaluation.quality", "scoring", "tabular", "plotting", "report",
)  # fmt: skip


def modules() -> list[str]:
    """The modules whose names a user is to know, ``ndm`` first."""
    return ["ndm", *(f"ndm.{name}" for name in PUBLIC)]


def public_name(module: str, name: str) -> str:
    """The name under which a module's name is documented: ndm.X, or that of a package, ndm.data.X, or its own."""
    value = getattr(importlib.import_module(module), name)
    for package in modules():
        exports = importlib.import_module(package)
        if name in exports.__all__ and getattr(exports, name) is value:
            return f"{package}.{name}"
    return f"{module}.{name}"


def page_of(module: str, name: str) -> str:
    """The module on whose page a name is documented: that which exports it, but for ``ndm``'s, which has no page."""
    home = public_name(module, name).rpartition(".")[0]
    if home != "ndm":
        return home
    made_in: str = getattr(getattr(ndm, name), "__module__", module)
    return "ndm.method.transforms" if made_in.startswith("ndm.method.transforms.") else made_in


def kind_of(value: Any) -> str:
    """Sphinx's word for what a value is."""
    if inspect.isclass(value):
        return "exception" if issubclass(value, BaseException) else "class"
    return "function" if inspect.isfunction(value) else "data"


class Public(SphinxDirective):
    """Document what a module's docstring says, and the names of its ``__all__`` that have their place on its page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(self.arguments[0])
        lines = [f".. automodule:: {module.__name__}", ""]
        for name in _as_in_the_file(module):
            if page_of(module.__name__, name) == module.__name__:
                kind = kind_of(getattr(module, name))
                lines.append(f".. auto{kind}:: {public_name(module.__name__, name)}")
                if kind in ("class", "exception"):
                    lines += _options(getattr(module, name))
                lines.append("")
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *lines, "```"]))


def _options(cls: type) -> list[str]:
    options = ["   :members:"]
    if hasattr(cls, "_fields"):  # which the docstring of a named tuple has listed
        options.append(f"   :exclude-members: {', '.join(cls._fields)}")
    return options if cls.__bases__ == (object,) else [*options, "   :show-inheritance:"]


def _as_in_the_file(module: ModuleType) -> list[str]:
    """The names of ``__all__``, those that are defined in the file in its order."""
    source = inspect.getsource(module)

    def place(name: str) -> int:
        found = re.search(rf"^(class |def )?{name}\b", source, re.MULTILINE)
        return found.start() if found else len(source)

    return sorted(module.__all__, key=place)


class Names(SphinxDirective):
    """The public names of every module, each with the first sentence of what is said of it."""

    def run(self) -> list[nodes.Node]:
        lines: list[str] = []
        for path in modules():
            module = importlib.import_module(path)
            lines += [f"## {path}", ""]
            for name in module.__all__:
                if public_name(path, name) == f"{path}.{name}":
                    value = getattr(module, name)
                    role = {"function": "func", "exception": "exc"}.get(kind_of(value), kind_of(value))
                    lines.append(f"- {{py:{role}}}`~{path}.{name}`{_first_sentence(value)}")
            lines.append("")
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def _first_sentence(value: Any) -> str:
    """A colon and the first sentence of a class's or function's docstring, as Markdown; nothing for other values."""
    if kind_of(value) == "data":
        return ""
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "").replace("\\", "")
    text = re.split(r"\. (?=[A-Z])|: (?=[A-Z])", text)[0].rstrip(".:;")
    return ": " + re.sub(r"([*_`|\[\]<>$])", r"\\\1", text)


def _find(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, text: nodes.Node) -> nodes.Node | None:
    """The target of a reference by another name than the documented one, such as ndm.method.model.NDM.

    A name in a signature that is not ndm's (torch.Tensor) is left as text; a role that leads nowhere is a warning.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    for path in (target, f"{node.get('py:module')}.{target}", f"ndm.{target}"):
        entry = env.domains.python_domain.objects.get(_documented(path) or "")
        if entry:
            uri = app.builder.get_relative_uri(node["refdoc"], entry.docname) + "#" + entry.node_id
            return nodes.reference("", "", text, internal=True, refuri=uri, reftitle=target)
    return None if "refwarn" in node else text


def _documented(path: str) -> str | None:
    """The documented name of what a path such as ndm.method.standardization.Standardize.fit stands for."""
    module, rest = path, ""
    while module.startswith("ndm"):
        module, _, name = module.rpartition(".")
        try:
            found = importlib.import_module(module) if module else None
        except ModuleNotFoundError:
            rest = f".{name}{rest}"
            continue
        value = getattr(found, name, None)
        if value is None:
            return None
        made_in = getattr(value, "__module__", "") or ""
        return public_name(made_in if made_in.startswith("ndm.") else module, name) + rest
    return None


def _bases(app: Sphinx, name: str, obj: type, options: object, bases: list[Any]) -> None:
    """Name the nearest public bases of a class: a private one is nobody's business, and torch's are not documented."""
    named: list[Any] = []
    for base in bases:
        while getattr(base, "__name__", "").startswith("_") and base.__module__.startswith("ndm"):
            base = base.__bases__[0]
        ours = getattr(base, "__module__", "").startswith("ndm")
        named.append(base if ours else f"``{getattr(base, '__name__', base)}``")
    bases[:] = [base for base in named if base != "``object``"] or ["``object``"]


def _signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """The signature of a class without a constructor of its own is not that of torch's Module."""
    return ("()" if signature == "(*args: Any, **kwargs: Any)" else signature), returns


def _skip(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out what scikit-learn adds to an estimator."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-skip-member", _skip)
    app.add_directive("public", Public)
    app.add_directive("names", Names)
    app.connect("missing-reference", _find)
    app.connect("autodoc-process-bases", _bases)
    app.connect("autodoc-process-signature", _signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
