"""What a call gives, checked, and what went wrong with it, in plain words."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import gradio as gr
from gradio.utils import get_upload_folder

from app import text
from app.errors import UserError

logger = logging.getLogger(__name__)


def in_plain_words(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, whose `UserError` reaches the visitor and whose other errors reach only the log.

    Args:
        fn: A function, or a generator function as Gradio streams them.
    """

    def translated(error: Exception) -> gr.Error:
        if isinstance(error, UserError):
            return gr.Error(str(error), print_exception=False)
        logger.error("%s failed", fn.__name__, exc_info=error)
        return gr.Error(text.ERROR_GENERIC, print_exception=False)

    if inspect.isgeneratorfunction(fn):

        @functools.wraps(fn)
        def steps(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from fn(*args, **kwargs)
            except Exception as error:
                raise translated(error) from error

        return steps

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        except Exception as error:
            raise translated(error) from error

    return call


WORDS = {str: text.KIND_TEXT, list[str]: text.KIND_IDS, bool: text.KIND_FLAG}
"""What is said of a parameter of this type. Numbers are checked where their range is known."""


def check_kind(name: str, kind: Any, value: Any) -> None:
    """Hold a value against its parameter's annotation.

    Raises:
        UserError: If it is of another type than one of `WORDS`.
    """
    if get_origin(kind) is UnionType:
        kind = next(arg for arg in get_args(kind) if arg is not NoneType)
    if kind not in WORDS or value is None:
        return
    if kind == list[str]:
        right = isinstance(value, list) and all(isinstance(item, str) for item in value)
    else:
        right = isinstance(value, kind)
    if not right and name == "variants":
        raise UserError(text.ERROR_NO_LIST.format(variants=f"{value!r:.100}"))
    if not right:
        raise UserError(
            text.ERROR_KIND.format(name=name, wanted=WORDS[kind], value=f"{value!r:.100}")
        )


def uploaded_path(image: Any) -> str:
    """Path of a file that came in through the upload route.

    Gradio passes on any `{"path": ...}` that lacks its file mark, so this is what keeps visitors
    from naming other files of the server.

    Args:
        image: What Gradio hands to an event without preprocessing.

    Raises:
        UserError: If there is no image, or its path is not in the upload folder.
    """
    if image is None:
        raise UserError(text.ERROR_NO_PHOTO)
    path = image.get("path") if isinstance(image, Mapping) else None
    if not isinstance(path, str) or not path:
        raise UserError(text.ERROR_NOT_UPLOADED)
    try:
        inside = Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve())
    except (OSError, RuntimeError, ValueError):
        # No path at all, such as one that holds a NUL or half a character.
        inside = False
    if not inside:
        raise UserError(text.ERROR_NOT_UPLOADED)
    return path
