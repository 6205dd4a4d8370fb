"""The seam to torch's code generators and tree specs, as data.

===============================================  ===================================================
private name                                     used for
===============================================  ===================================================
``graph.CodeGen``                                the plain code generator
``graph._PyTreeCodeGen``, ``graph._PyTreeInfo``  signatures with nested structure
``graph._BoxedCodeGen``                          signatures that take one list (after torch 2.9)
``torch.utils._pytree``                          making specs, and knowing which types are taken
                                                 apart
``_pytree.treespec_leaf``                        the same (after torch 2.9)
``TreeSpec._context``, ``TreeSpec._children``    the structure itself (after torch 2.9)
===============================================  ===================================================

A tree spec is written as ``null`` for a leaf, else ``[type, context, [children]]``; the type of
named tuples, whose class is the context, is ``"namedtuple"``. Tree specs of
torch pickle with a warning and only while their classes keep their names; this form does neither.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

from torch.fx import graph as _torch_graph
from torch.fx.graph import CodeGen, _PyTreeCodeGen
from torch.utils import _pytree

from .errors import GraphFormatError

if TYPE_CHECKING:
    from collections.abc import Callable

_BoxedCodeGen = getattr(_torch_graph, "_BoxedCodeGen", None)
_ATTRIBUTES = frozenset(vars(CodeGen()))  # as of this torch: _body_transformer, _func_name
_LEAF = getattr(_pytree, "treespec_leaf", None) or _pytree.LeafSpec
_DEEPEST_TREE = 200


def describe_codegen(codegen: CodeGen, encode: Callable[[Any], Any]) -> Any:
    """JSON of a code generator; a class of the user's own goes through ``encode`` as it is."""
    kind = type(codegen)
    attributes = dict(vars(codegen))
    if kind is _PyTreeCodeGen:
        info = attributes.pop("pytree_info")
        extra = {
            "orig_args": encode(list(info.orig_args)),
            "in_spec": describe_spec(info.in_spec, encode),
            "out_spec": None if info.out_spec is None else describe_spec(info.out_spec, encode),
            "has_out_spec": info.out_spec is not None,
        }
        name = "pytree"
    elif kind is CodeGen or (kind is _BoxedCodeGen and kind is not None):
        extra, name = {}, "plain" if kind is CodeGen else "boxed"
    else:
        return {"codegen": "object", "value": encode(codegen)}
    plain = CodeGen()
    changed = {
        key: encode(value)
        for key, value in attributes.items()
        if key not in _ATTRIBUTES or value != getattr(plain, key)
    }
    return {"codegen": name, **extra, **({"attributes": changed} if changed else {})}


def rebuild_codegen(data: Any, decode: Callable[[Any], Any]) -> CodeGen:
    """The code generator that :func:`describe_codegen` described.

    Raises:
        GraphFormatError: The data describe none that this torch has.
    """
    if type(data) is not dict:
        raise GraphFormatError(f"a code generator is an object, found {data!r:.80}")
    name = data.get("codegen")
    codegen: CodeGen
    if name == "object":
        given = decode(data.get("value"))
        if not isinstance(given, CodeGen):
            raise GraphFormatError(f"expected a code generator, found {given!r:.80}")
        return given
    if name == "plain":
        codegen = CodeGen()
    elif name == "boxed" and _BoxedCodeGen is not None:
        codegen = _BoxedCodeGen()
    elif name == "pytree":
        orig_args = decode(data.get("orig_args"))
        if type(orig_args) is not list or not all(type(arg) is str for arg in orig_args):
            raise GraphFormatError(f"orig_args are names, found {orig_args!r:.80}")
        out = rebuild_spec(data.get("out_spec"), decode) if data.get("has_out_spec") else None
        in_spec = rebuild_spec(data.get("in_spec"), decode)
        codegen = _PyTreeCodeGen(_torch_graph._PyTreeInfo(orig_args, in_spec, out))
    else:
        raise GraphFormatError(f"this torch has no code generator {name!r:.80}")
    changed = data.get("attributes", {})
    if type(changed) is not dict:
        raise GraphFormatError(f"attributes of a code generator, found {changed!r:.80}")
    for key, value in changed.items():
        decoded = decode(value)
        # Text of a code generator ends up in generated code.
        if key not in _ATTRIBUTES or (type(decoded) is str and not decoded.isidentifier()):
            raise GraphFormatError(f"a code generator has no {key!r:.80} = {decoded!r:.80}")
        setattr(codegen, key, decoded)
    return codegen


def texts_in_code(codegen: CodeGen) -> list[str]:
    """Text of ``codegen`` that torch writes into generated code as it is."""
    texts = [value for value in vars(codegen).values() if type(value) is str]
    if isinstance(codegen, _PyTreeCodeGen):
        texts.extend(codegen.pytree_info.orig_args)
    return texts


def specs_of(codegen: CodeGen) -> list[Any]:
    """The tree specs of ``codegen``."""
    if not isinstance(codegen, _PyTreeCodeGen):
        return []
    info = codegen.pytree_info
    return [spec for spec in (info.in_spec, info.out_spec) if spec is not None]


def spec_parts(spec: Any) -> tuple[Any, Any, list[Any]]:
    """Type, context and children of a tree spec; a leaf has the type None."""
    children = getattr(spec, "_children", None)
    if children is None:
        children = spec.children_specs
    return spec.type, spec._context if hasattr(spec, "_context") else spec.context, children


def is_spec(value: object) -> bool:
    """Whether ``value`` is a tree spec in Python (those in C++ pickle by themselves)."""
    return isinstance(value, _pytree.TreeSpec)


def describe_spec(spec: Any, encode: Callable[[Any], Any]) -> Any:
    """JSON of a tree spec."""
    if spec.type is None:
        return None
    kind, context, children = spec_parts(spec)
    if kind is collections.namedtuple:
        return ["namedtuple", encode(context), [describe_spec(c, encode) for c in children]]
    return [encode(kind), encode(context), [describe_spec(c, encode) for c in children]]


def rebuild_spec(data: Any, decode: Callable[[Any], Any], depth: int = 0) -> Any:
    """The tree spec that :func:`describe_spec` described.

    Raises:
        GraphFormatError: The data describe none.
    """
    if data is None:
        return _LEAF()
    if type(data) is not list or len(data) != 3 or type(data[2]) is not list:
        raise GraphFormatError(f"a tree is [type, context, children], found {data!r:.80}")
    if depth > _DEEPEST_TREE:
        raise GraphFormatError(f"a tree is deeper than {_DEEPEST_TREE}")
    kind = collections.namedtuple if data[0] == "namedtuple" else decode(data[0])
    if kind not in _pytree.SUPPORTED_NODES:
        raise GraphFormatError(
            f"{kind!r:.80} is not registered with pytree; import the library that registers it "
            "before loading"
        )
    children = [rebuild_spec(child, decode, depth + 1) for child in data[2]]
    return _pytree.TreeSpec(kind, decode(data[1]), children)
