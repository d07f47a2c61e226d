"""The code of a pruned model, in which modules are looked up where they are.

FX writes ``self.features.conv``, which PyTorch resolves in Python, module by module: a noticeable
part of a small network's time. ``self._modules["features"]`` is found at once, and is as true to
modules that are replaced later.
"""

from __future__ import annotations

import ast

from torch import nn


def with_direct_lookups(source: str, root: nn.Module) -> str:
    """Rewrite how a program names the modules that it calls.

    Args:
        source: the program's code, in which ``self`` is ``root``.
        root: of the modules. Only what is a module of it, and nothing else, is looked up directly.
    """
    return ast.unparse(ast.fix_missing_locations(_Direct(root).visit(ast.parse(source))))


class _Direct(ast.NodeTransformer):
    def __init__(self, root: nn.Module) -> None:
        self._root = root

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Replace what is called, if it is a module within the root."""
        self.generic_visit(node)
        found = self._found(node.func)
        if found is not None and found[1] is not self._root:
            node.func = found[0]
        return node

    def _found(self, node: ast.expr) -> tuple[ast.expr, nn.Module] | None:
        """A direct lookup, and the module that it finds; ``None`` if it is no module."""
        if isinstance(node, ast.Name):
            return (node, self._root) if node.id == "self" else None
        step = _step(node)
        if step is None:
            return None
        owner, name = step
        before = self._found(owner)
        if before is None:
            return None
        expression, module = before
        child = module._modules.get(name)
        if child is None or getattr(module, name) is not child:
            return None
        table = ast.Attribute(expression, "_modules", ast.Load())
        return ast.Subscript(table, ast.Constant(name), ast.Load()), child


def _step(node: ast.expr) -> tuple[ast.expr, str] | None:
    """The owner of an attribute, and its name: ``a.b``, or ``getattr(a, "b")``."""
    if isinstance(node, ast.Attribute):
        return node.value, node.attr
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return None
    if node.func.id != "getattr" or len(node.args) != 2:
        return None
    owner, name = node.args
    if isinstance(name, ast.Constant) and isinstance(name.value, str):
        return owner, name.value
    return None
