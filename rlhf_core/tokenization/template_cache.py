"""Many conversations by one rendering: of templates that pass on what people say as it is.

Such a template decides by roles alone what it writes, and puts each turn's text somewhere into it,
whole or without the white space at its ends. Then conversations with the same roles differ in those
places only. Whether a template is of this kind is read off its syntax tree, where a text may be
written, joined to others and trimmed, and nothing else may become of it.
"""

import re
from collections.abc import Sequence
from enum import Enum

from jinja2 import nodes
from transformers import PreTrainedTokenizerBase

from rlhf_core.errors import DataError
from rlhf_core.schema import Conversation, Message
from rlhf_core.tokenization.template import apply_template, apply_to_many, parse_template

_PAD = "\u2003\u2002\u2005"
"""White space of a stand-in, which shows whether a text is trimmed."""
_OPEN, _CLOSE = "\ue000", "\ue001"
"""Characters for private use, around the number of a turn."""
_PLACE = re.compile(f"({_PAD})?{_OPEN}([0-9]+){_CLOSE}({_PAD})?")
_MOST_SHAPES = 1_024

Piece = str | tuple[int, bool]
"""Text of the template, or the turn that stands there and whether it is trimmed."""


class TemplateCache:
    """Renders conversations for one tokenizer, for less than one by one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Look at the tokenizer's template."""
        self._tokenizer = tokenizer
        self._passes_on = passes_texts_on(str(tokenizer.get_chat_template()))
        self._known: dict[tuple[tuple[str, ...], bool], list[Piece]] = {}

    def render(
        self, conversations: Sequence[Conversation], *, generation_prompt: bool
    ) -> list[str] | None:
        """Return what ``apply_template`` gives for each conversation.

        None where one is empty or the template refuses it: ``apply_template`` says which and why.
        """
        if not all(conversations):
            return None
        if not conversations:
            return []
        if not self._passes_on:
            return apply_to_many(
                self._tokenizer, conversations, generation_prompt=generation_prompt
            )
        try:
            return [self._filled(turns, generation_prompt) for turns in conversations]
        except DataError:
            return None

    def _filled(self, turns: Conversation, generation_prompt: bool) -> str:
        shape = tuple([turn.role for turn in turns]), generation_prompt
        pieces = self._known.get(shape)
        if pieces is None:
            if len(self._known) >= _MOST_SHAPES:
                self._known.clear()
            pieces = self._known[shape] = self._pieces(turns, generation_prompt)
        return "".join([_filling(piece, turns) for piece in pieces])

    def _pieces(self, turns: Conversation, generation_prompt: bool) -> list[Piece]:
        stand_ins = tuple(
            Message(role=turn.role, content=f"{_PAD}{_OPEN}{number}{_CLOSE}{_PAD}")
            for number, turn in enumerate(turns)
        )
        text = apply_template(self._tokenizer, stand_ins, generation_prompt=generation_prompt)
        pieces: list[Piece] = []
        end = 0
        for found in _PLACE.finditer(text):
            pieces += [text[end : found.start()], (int(found[2]), found[1] is None)]
            end = found.end()
        return [*pieces, text[end:]]


def _filling(piece: Piece, turns: Conversation) -> str:
    if isinstance(piece, str):
        return piece
    number, is_trimmed = piece
    text = turns[number].content
    return text.strip() if is_trimmed else text


def passes_texts_on(template: str) -> bool:
    """Tell whether what a template writes depends on texts in no other way than by holding them."""
    if any(mark in template for mark in (_PAD, _OPEN, _CLOSE)):
        return False
    try:
        taint, before = _TaintAnalysis(), 0
        while len(taint.kinds) + taint.num_mixed() > before:
            # A name may be used before the place where it is given a text.
            before = len(taint.kinds) + taint.num_mixed()
            taint.follow(parse_template(template).body, is_written=True)
    except _InspectsText:
        return False
    return True


class _InspectsText(Exception):
    """A template does more with texts than to write them."""


class _Kind(Enum):
    """What the value of an expression may hold of the conversation."""

    NOTHING = "nothing but roles, and what is the same for all conversations"
    TURNS = "a list of turns"
    TURN = "a turn"
    TEXT = "a text, whole or trimmed"
    JOINED = "a text with something before or after it"
    LOOP = "jinja's loop"


_NOTHING, _TURNS, _TURN = _Kind.NOTHING, _Kind.TURNS, _Kind.TURN
_TEXT, _JOINED, _LOOP = _Kind.TEXT, _Kind.JOINED, _Kind.LOOP
_OF_LOOP = frozenset({"index", "index0", "revindex", "revindex0", "first", "last", "length"})
_OF_TYPE = frozenset(
    {"defined", "undefined", "none", "string", "mapping", "sequence", "iterable", "number"}
)
"""Tests that ask for the type of a value, which is the same for all."""


class _TaintAnalysis:
    """Follows turns and their texts through a template, by the names it gives them."""

    def __init__(self) -> None:
        self.kinds = {"messages": _TURNS, "loop": _LOOP}

    def num_mixed(self) -> int:
        return sum(kind is _JOINED for kind in self.kinds.values())

    def follow(self, statements: Sequence[nodes.Node], *, is_written: bool) -> None:
        """Refuse statements that do more with texts than to write them.

        Args:
            statements: in their order.
            is_written: whether their output goes into the rendering as it is.

        Raises:
            _InspectsText: they do.
        """
        for statement in statements:
            match statement:
                case nodes.Output():
                    kinds = {self._kind(part) for part in statement.nodes}
                    if not kinds <= ({_NOTHING, _TEXT, _JOINED} if is_written else {_NOTHING}):
                        raise _InspectsText
                case nodes.If():
                    self._require_nothing(statement.test)
                    for branch in (statement.body, statement.elif_, statement.else_):
                        self.follow(branch, is_written=is_written)
                case nodes.For(recursive=False):
                    self._follow_loop(statement, is_written)
                case _:
                    self._follow_silent(statement)

    def _follow_silent(self, statement: nodes.Node) -> None:
        """Likewise for a statement that writes nothing where it stands."""
        match statement:
            case nodes.Assign():
                self._name(statement.target, self._kind(statement.node))
            case nodes.Macro():
                self._require_nothing(*statement.defaults)
                self.follow(statement.body, is_written=False)
            case nodes.ExprStmt():
                self._require_nothing(statement.node)
            case nodes.Break() | nodes.Continue():
                pass
            case _:
                raise _InspectsText

    def _follow_loop(self, loop: nodes.For, is_written: bool) -> None:
        over = self._kind(loop.iter)
        if over not in (_NOTHING, _TURNS):
            raise _InspectsText
        self._name(loop.target, _TURN if over is _TURNS else _NOTHING)
        if loop.test is not None:
            self._require_nothing(loop.test)
        self.follow(loop.body, is_written=is_written)
        self.follow(loop.else_, is_written=is_written)

    def _name(self, target: nodes.Node, kind: _Kind) -> None:
        """Note what a name may hold: of several kinds the one of which less is allowed."""
        if kind is _NOTHING:
            return
        if not isinstance(target, nodes.Name) or kind is _LOOP:
            raise _InspectsText
        known = self.kinds.setdefault(target.name, kind)
        if {known, kind} == {_TEXT, _JOINED}:
            self.kinds[target.name] = _JOINED
        elif known is not kind:
            raise _InspectsText

    def _require_nothing(self, *expressions: nodes.Node) -> None:
        if any(self._kind(part) is not _NOTHING for part in expressions):
            raise _InspectsText

    def _kind(self, node: nodes.Node) -> _Kind:
        match node:
            case nodes.Name():
                return self.kinds.get(node.name, _NOTHING)
            case nodes.Getattr():
                return self._part(self._kind(node.node), nodes.Const(node.attr))
            case nodes.Getitem():
                return self._part(self._kind(node.node), node.arg)
            case nodes.CondExpr():
                return self._chosen(node)
            case nodes.Add() | nodes.Concat():
                return self._joined(node)
            case nodes.Filter(node=nodes.Expr()) | nodes.Call():
                return self._worked_on(node)
        return self._asked(node)

    def _worked_on(self, node: nodes.Filter | nodes.Call) -> _Kind:
        """A filter or a call: of texts white space may be taken away, of turns the number."""
        match node:
            case (
                nodes.Filter(name="trim", node=nodes.Expr() as inner, args=[], kwargs=[])
                | nodes.Call(node=nodes.Getattr(node=inner, attr="strip"), args=[], kwargs=[])
            ):
                kind = self._kind(inner)
                _allowed(kind, _NOTHING, _TEXT)
                return kind
            case nodes.Filter(name="length" | "count", node=nodes.Expr() as inner):
                return _allowed(self._kind(inner), _NOTHING, _TURNS)
        self._require_nothing(*node.iter_child_nodes())
        return _NOTHING

    def _asked(self, node: nodes.Node) -> _Kind:
        """Any other expression: it may ask for types, and whether a turn has a key."""
        match node:
            case nodes.Test(args=[]) if node.name in _OF_TYPE:
                return _allowed(self._kind(node.node), _NOTHING, _TEXT, _JOINED, _TURN, _TURNS)
            case nodes.Compare(ops=[nodes.Operand(op="in" | "notin") as operand]):
                self._require_nothing(node.expr)
                return _allowed(self._kind(operand.expr), _NOTHING, _TURN)
        self._require_nothing(*node.iter_child_nodes())
        return _NOTHING

    def _part(self, kind: _Kind, key: nodes.Node) -> _Kind:
        """What stands in a value under a key, or under the name of an attribute."""
        name = key.value if isinstance(key, nodes.Const) else None
        match kind:
            case _Kind.NOTHING:
                self._require_nothing(key)
                return _NOTHING
            case _Kind.TURNS if not isinstance(name, str):
                self._require_nothing(key)
                return _TURNS if isinstance(key, nodes.Slice) else _TURN
            case _Kind.TURN if isinstance(name, str) and not hasattr(dict, name):
                return _TEXT if name == "content" else _NOTHING
            case _Kind.LOOP if name in _OF_LOOP:
                return _NOTHING
        raise _InspectsText

    def _joined(self, node: nodes.Add | nodes.Concat) -> _Kind:
        kinds = {self._kind(part) for part in node.iter_child_nodes()}
        if not kinds <= {_NOTHING, _TEXT, _JOINED}:
            raise _InspectsText
        return _NOTHING if kinds == {_NOTHING} else _JOINED

    def _chosen(self, node: nodes.CondExpr) -> _Kind:
        self._require_nothing(node.test)
        other = _NOTHING if node.expr2 is None else self._kind(node.expr2)
        kinds = {self._kind(node.expr1), other} - {_NOTHING}
        if len(kinds) > 1 and kinds != {_TEXT, _JOINED}:
            raise _InspectsText
        return _JOINED if len(kinds) > 1 else next(iter(kinds), _NOTHING)


def _allowed(kind: _Kind, *allowed: _Kind) -> _Kind:
    """Nothing, where a value may be of this kind."""
    if kind not in allowed:
        raise _InspectsText
    return _NOTHING
