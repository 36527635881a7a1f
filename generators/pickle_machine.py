"""Pickles read as data: a small machine that builds plain containers, and calls a table of our own functions alone.

    values = Machine(names, persistent).load(Stream(data))

`pickletools` decodes; what a pickle names is looked up by `names`, which raises for what it does not know. No attribute
of anything is set by a file, no class of a file is made, keys are plain scalars, and operations are counted: a file of
n bytes costs memory and time in proportion to n. Large pieces of bytes are views of the data, not copies.
"""

import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OPERATIONS = 1_000_000  # of one pickle; the optimiser's state of a network of 2 billion parameters needs 10^5
LARGEST_TEXT = 2**24  # bytes of one string
VIEWED = 2**12  # bytes from which on a piece is a view
LARGEST_KEY = 2**60  # of whole numbers as keys: below it no two have the same hash

# Operations that push what they carry.
VALUES = frozenset(
    code.name
    for code in pickletools.opcodes
    if re.fullmatch(r"(SHORT_)?(BIN)?(STRING|UNICODE|BYTES)8?|BININT[12]?|INT|LONG[14]?|(BIN)?FLOAT", code.name)
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What stands for a class or a function that a pickle names."""

    name: str
    make: Callable[..., Any]


class Stand:
    """What stands for an object of a class that is not at hand; it may be given a state, items and arguments."""

    def take(self, state: Any) -> None:
        """The state of a BUILD. Raises ValueError for one that the object cannot have."""

    def put(self, key: Any, value: Any) -> None:
        """An item of a dictionary."""
        raise ValueError(f"items were given to a {type(self).__name__}")

    def append(self, value: Any) -> None:
        """An item of a list."""
        raise ValueError(f"items were given to a {type(self).__name__}")

    def call(self, *_arguments: Any) -> Any:
        """As a function."""
        raise ValueError(f"a {type(self).__name__} was called")


class Stream:
    """Bytes in memory, or in a mapped file, as `pickletools` reads them; never reads beyond their end."""

    def __init__(self, data: memoryview, position: int = 0) -> None:
        self.data, self.position = data, position

    def read(self, count: int) -> bytes | memoryview:
        piece = self.data[self.position : self.position + count]
        self.position += len(piece)
        return piece if count >= VIEWED else bytes(piece)

    def readline(self) -> bytes:
        window = bytes(self.data[self.position : self.position + LARGEST_TEXT])
        line = window[: window.find(b"\n") + 1]  # nothing without an end: pickletools then refuses it
        self.position += len(line)
        return line

    def tell(self) -> int:
        return self.position


class Machine:
    """Reads one pickle after the other; the number of operations is that of all of them."""

    def __init__(
        self, names: Callable[[str], Any], persistent: Callable[[Any], Any], operations: int | None = None
    ) -> None:
        """names: what stands for "module.name". persistent: what stands for an id of something outside the pickle."""
        self.names, self.persistent, self.left = names, persistent, OPERATIONS if operations is None else operations
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        steps = {name.removeprefix("_do_").upper(): getattr(self, name) for name in dir(self) if name[:4] == "_do_"}
        self.steps: dict[str, Callable[[Any], None]] = steps

    def load(self, stream: Stream) -> Any:
        """What the next pickle of the stream holds. Raises ValueError if it is damaged or does what no data need."""
        self.stack, self.marked, self.memo = [], [], {}
        try:
            for code, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
                self.left -= 1
                if self.left < 0:
                    raise ValueError("it takes more steps than any checkpoint")
                if (name := code.name) in VALUES:
                    if isinstance(argument, str) and len(argument) > LARGEST_TEXT:
                        raise ValueError(f"it holds a text of {len(argument)} letters")
                    self.stack.append(argument)
                elif name in _CONSTANTS:
                    self.stack.append(_CONSTANTS[name]())
                elif name == "STOP":
                    return self.stack.pop()
                elif name in self.steps:
                    self.steps[name](argument)
                elif name not in ("PROTO", "FRAME"):
                    raise ValueError(f"it uses {name}, which no checkpoint needs")
        except (LookupError, TypeError, AttributeError, ArithmeticError, MemoryError) as error:
            raise ValueError(f"it is damaged, {type(error).__name__} {error}") from error
        raise ValueError("it is cut short")

    def _items(self) -> list[Any]:
        """All since the last mark."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _do_mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def _do_pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._items()

    def _do_pop_mark(self, _: Any) -> None:
        self._items()

    def _do_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _do_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _do_put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    _do_binput = _do_long_binput = _do_put

    def _do_get(self, place: int) -> None:
        self.stack.append(self.memo[place])

    _do_binget = _do_long_binget = _do_get

    def _do_tuple(self, _: Any) -> None:
        items = tuple(self._items())
        self.stack.append(items)

    def _do_tuple1(self, _: Any) -> None:
        self._pack(1)

    def _do_tuple2(self, _: Any) -> None:
        self._pack(2)

    def _do_tuple3(self, _: Any) -> None:
        self._pack(3)

    def _pack(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("it is damaged")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def _do_list(self, _: Any) -> None:
        items = self._items()
        self.stack.append(items)

    def _do_dict(self, _: Any) -> None:
        items = self._items()
        self.stack.append({})
        self._put_all(items)

    def _do_frozenset(self, _: Any) -> None:
        items = self._items()
        self.stack.append(frozenset(map(checked_key, items)))

    def _do_additems(self, _: Any) -> None:
        items = self._items()
        self.stack[-1].update(map(checked_key, items))

    def _do_append(self, _: Any) -> None:
        item = self.stack.pop()
        self._append_all([item])

    def _do_appends(self, _: Any) -> None:
        self._append_all(self._items())

    def _append_all(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif isinstance(target, Stand):
            for item in items:
                target.append(item)
        else:
            raise ValueError(f"it appends to a {type(target).__name__}")

    def _do_setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put_all([key, value])

    def _do_setitems(self, _: Any) -> None:
        self._put_all(self._items())

    def _put_all(self, items: list[Any]) -> None:
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(target, dict):
                target[checked_key(key)] = value
            elif isinstance(target, Stand):
                target.put(key, value)
            else:
                raise ValueError(f"it sets items of a {type(target).__name__}")

    def _do_global(self, name: str) -> None:
        self.stack.append(self.names(str(name).replace(" ", ".", 1)))

    def _do_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("it names something that is no name")
        self.stack.append(self.names(f"{module}.{name}"))

    def _do_reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(_made(function, arguments))

    _do_newobj = _do_reduce

    def _do_newobj_ex(self, _: Any) -> None:
        self.stack.pop()  # arguments by name; nothing that stands for a class takes any
        self._do_reduce(None)

    def _do_inst(self, name: str) -> None:
        items = self._items()
        self.stack.append(_made(self.names(str(name).replace(" ", ".", 1)), tuple(items)))

    def _do_obj(self, _: Any) -> None:
        items = self._items()
        self.stack.append(_made(items[0], tuple(items[1:])))

    def _do_build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Stand):
            target.take(state)
        elif type(target) is dict or not isinstance(target, dict):  # others' state is about versions: not needed
            raise ValueError(f"it sets attributes of a {type(target).__name__}")

    def _do_persid(self, name: Any) -> None:
        self.stack.append(self.persistent(name))

    def _do_binpersid(self, _: Any) -> None:
        self.stack.append(self.persistent(self.stack.pop()))


def _made(function: Any, arguments: Any) -> Any:
    if type(arguments) is not tuple:
        raise ValueError("it calls a function with something else than arguments")
    if isinstance(function, Known):
        return function.make(*arguments)
    if isinstance(function, Stand):
        return function.call(*arguments)
    raise ValueError(f"it calls a {type(function).__name__}")


def checked_key(key: Any) -> Any:
    """The same, if it is a plain key of a dictionary or a member of a set; raises ValueError otherwise."""
    for part in key if type(key) is tuple else (key,):
        plain = part is None or type(part) in (str, bytes, bool) or (type(part) is int and abs(part) < LARGEST_KEY)
        if not plain and not isinstance(part, Stand):
            raise ValueError(f"it has a key that is a {type(part).__name__}")
    return key


def plain_set(members: Any = ()) -> set[Any]:
    """What a pickle's `set(members)` makes."""
    return set(map(checked_key, _listed(members)))


def ordered(items: Any = ()) -> "OrderedDict[Any, Any]":
    """What a pickle's `OrderedDict(items)` makes."""
    return OrderedDict((checked_key(key), value) for key, value in _listed(items))


def encoded(text: Any, encoding: Any) -> bytes:
    """What a pickle's `_codecs.encode(text, "latin1")` makes, which is how protocol 2 holds bytes."""
    if type(text) is not str or encoding != "latin1":
        raise ValueError(f"it encodes a {type(text).__name__} as {str(encoding)[:40]}")
    return text.encode("latin1")


def _listed(items: Any) -> list[Any] | tuple[Any, ...] | set[Any]:
    if type(items) not in (list, tuple, set):
        raise ValueError(f"it makes a container of a {type(items).__name__}")
    return items
