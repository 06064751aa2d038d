"""What every call gets, whatever its service: a request id, admission, one log line, metrics, mapped errors.

Rules:
- Each call ends in exactly one log line and one count, also when its client has gone.
- Messages are decoded and encoded here and not by grpc, so that a malformed request and an oversized answer are
  errors of ours, with a sentence, instead of grpc's INTERNAL and a traceback.
- A call's messages are freed as it ends, however it ends: cycles would keep them, of up to megabytes each, until the
  garbage collector comes.
- `except Exception` stands here because nothing may pass: what `status` doesn't know would reach the client with its
  class and text.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, nullcontext
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc
import structlog
from google.protobuf.message import DecodeError
from structlog.contextvars import bind_contextvars

from cri_shim import metrics
from cri_shim.errors import InvalidArgumentError, ResourceExhaustedError, forget_frames
from cri_shim.log import is_shown
from cri_shim.rpc.calls import Call, MethodName
from cri_shim.rpc.redaction import redacted
from cri_shim.rpc.request_limits import check_parts, check_size
from cri_shim.rpc.status import answer_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractContextManager

    from google.protobuf.message import Message

    from cri_shim.rpc.encoded import Encoded
    from cri_shim.rpc.gate import Gate
    from cri_shim.rpc.request_budget import RequestBudget

    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]

log = structlog.get_logger()

_UNKNOWN: Final = MethodName("unknown", "unknown")
"""One series for every method that isn't served: names that clients make up must not become labels."""
_BY_NUMBER: Final = {code.value[0]: code for code in grpc.StatusCode}


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of one server: what is kept per method must not be found on a server without it."""

    def __init__(self, gate: Gate, budget: RequestBudget, *, max_message_bytes: int) -> None:
        self._gate = gate
        self._budget = budget
        self._max_message_bytes = max_message_bytes
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The handler grpc found, wrapped; None for a method that no service has."""
        path = handler_call_details.method
        wrapped = self._wrapped.get(path)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                call = Call(_UNKNOWN, code=grpc.StatusCode.UNIMPLEMENTED)
                call.count(0.0)
                log.debug("no such method", rpc=path[:200])
                return None
            wrapped = self._wrapped[path] = self._wrap(MethodName.parse(path), handler)
        return wrapped

    def _wrap(self, name: MethodName, handler: Handler) -> Handler:
        """The same method on raw bytes: what fails in decoding, in the method or in encoding is reported alike."""
        codec = _Codec(name, handler.request_deserializer, handler.response_serializer)
        behaviour: Any = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )

        async def run(raw: Any, context: Context) -> bytes | None:  # noqa: ANN401 - bytes, or an iterator of them
            call = Call(name)
            # The task is this call's alone, and so is its context: nothing has to be put back.
            bind_contextvars(request_id=call.id)
            metrics.GRPC_REQUESTS_IN_FLIGHT.inc()
            try:
                held = nullcontext() if handler.request_streaming else self._budget.held(raw)
                with self._admission(name), held:
                    request: Message | AsyncIterator[Message]
                    if handler.request_streaming:
                        request = codec.decoded_each(raw)
                    else:
                        async with self._budget.decoding(raw):
                            request = self._noticed(call, codec.decoded(raw))
                    answer = behaviour(request, context)
                    if not handler.response_streaming:
                        message = await answer
                        if not isinstance(
                            message, bytes
                        ):  # what is encoded already is a list: about nobody alone
                            call.messages.append(message)
                        return self._encoded(codec, message)
                    if hasattr(answer, "__aiter__"):
                        # grpc's reflection: closed here, in this task, should the client go away between two messages.
                        async with aclosing(answer):
                            async for piece in answer:
                                await context.write(piece)
                    else:
                        await answer
            except asyncio.CancelledError:
                call.code = grpc.StatusCode.CANCELLED
                raise
            except grpc.aio.AbortError:
                # A service of grpc's own chose its status itself.
                call.code, call.text = _chosen(context)
                raise
            except Exception as error:  # noqa: BLE001 - the edge: see the module's rules
                call.code, call.text = answer_to(error, call.id)
                forget_frames(error)
                # Not `abort`: grpc keeps what that raises beside the call whose frames it is raised through.
                context.set_code(call.code)
                context.set_details(call.text)
            finally:
                metrics.GRPC_REQUESTS_IN_FLIGHT.dec()
                self._report(call)
            return None  # what a call that failed answers is thrown away: its status is not OK

        def encode(message: Any) -> bytes:  # noqa: ANN401 - what a stream sends; one answer arrives as bytes
            return message if isinstance(message, bytes) else self._encoded(codec, message)

        match handler.request_streaming, handler.response_streaming:
            case False, False:
                return grpc.unary_unary_rpc_method_handler(run, None, encode)
            case False, True:
                return grpc.unary_stream_rpc_method_handler(run, None, encode)
            case True, False:
                return grpc.stream_unary_rpc_method_handler(run, None, encode)
            case _:
                return grpc.stream_stream_rpc_method_handler(run, None, encode)

    def _admission(self, name: MethodName) -> AbstractContextManager[None]:
        return (
            nullcontext()
            if name.is_about_the_server
            else self._gate.admitted(is_read_only=name.is_read_only)
        )

    def _noticed(self, call: Call, request: Message) -> Message:
        call.messages.append(request)
        if is_shown("debug"):
            log.debug("request", rpc=call.name.method, request=_Shown(request))
        return request

    def _encoded(self, codec: _Codec, message: Message | Encoded) -> bytes:
        raw: bytes = codec.encode(message)
        if len(raw) > self._max_message_bytes:
            raise ResourceExhaustedError(
                f"the answer has {len(raw)} bytes, more than limits.grpc_message allows "
                f"({self._max_message_bytes}): ask for less with a filter, or raise the limit"
            )
        return raw

    def _report(self, call: Call) -> None:
        seconds = call.seconds
        call.count(seconds)
        if not is_shown(call.level):
            return
        fields: dict[str, object] = {
            "rpc": call.name.method,
            "code": call.code.name,
            "seconds": round(seconds, 4),
            **call.subject,
        }
        if call.text:
            fields["error"] = call.text
        if not call.name.is_cri_v1:
            fields["service"] = call.name.service
        getattr(log, call.level)("call", **fields)


class _Shown:
    """A message as a log line may show it; the text is made only where the line is written."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def __repr__(self) -> str:
        return redacted(self._message)


class _Codec(NamedTuple):
    """A method's messages as bytes and back."""

    name: MethodName
    decode: Any
    encode: Any

    def decoded(self, raw: bytes) -> Message:
        """Raises: InvalidArgumentError for bytes that are not the method's message, or hold more than it may."""
        if self.name.is_cri:
            check_size(raw)
        try:
            message: Message = self.decode(raw)
        except DecodeError as error:
            raise InvalidArgumentError(
                f"the request is not the message that {self.name.method} of {self.name.service} takes: "
                "wrong field type, text that is no UTF-8, or a cut message"
            ) from error
        if self.name.is_cri:
            check_parts(message, len(raw))
        return message

    async def decoded_each(self, raw: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        """The messages of a client's stream."""
        async for piece in raw:
            yield self.decoded(piece)


def _chosen(context: Context) -> tuple[grpc.StatusCode, str]:
    """The status that a service set on its context; grpc.aio keeps the code as its number."""
    code: Any = context.code()
    return _BY_NUMBER.get(code, code), context.details() or ""
