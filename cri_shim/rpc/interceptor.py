"""The interceptor around every gRPC call: request ID, admission, decoding, metrics, one log line, error mapping.

Rules:
- Each call ends with exactly one log line and one count, also when its client has disconnected.
- Messages are decoded and encoded here, not by grpc. So a malformed request and an oversized response are answered with
  a code and a sentence, not with grpc's INTERNAL and a traceback in the log.
- A call's messages are freed when it ends, also when it fails. A reference cycle would keep them, megabytes each, until
  the garbage collector runs.
- `except Exception` is needed here: grpc would send the class and text of an exception that passes to the client.
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
"""One time series for all unknown methods: method names that clients invent must not become metric labels."""
_BY_NUMBER: Final = {code.value[0]: code for code in grpc.StatusCode}


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of one server. Each server has its own: not every server serves every method."""

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
        """The wrapped handler of the method, or None for a method that no service has."""
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
        """The method on raw bytes, so that errors of decoding, of the method and of encoding are reported alike."""
        codec = _Codec(name, handler.request_deserializer, handler.response_serializer)
        behaviour: Any = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )

        async def run(raw: Any, context: Context) -> bytes | None:  # noqa: ANN401 - bytes, or an iterator of them
            call = Call(name)
            # grpc runs each call in a task of its own, hence in a context of its own: no reset is needed.
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
                        # An encoded response is a list and concerns no single object: the log line needs nothing of it.
                        if not isinstance(message, bytes):
                            call.messages.append(message)
                        return self._encoded(codec, message)
                    await _written(answer, context)
            except asyncio.CancelledError:
                call.code = grpc.StatusCode.CANCELLED
                raise
            except grpc.aio.AbortError:
                # The health service and reflection set their status themselves, and then abort.
                call.code, call.text = _chosen(context)
                raise
            except grpc.aio.InternalError:
                # A stream's message could not be written: its client is gone, which grpc tells us of only later.
                call.code = grpc.StatusCode.CANCELLED
            except Exception as error:  # noqa: BLE001 - the edge: see the module's rules
                call.code, call.text = answer_to(error, call.id)
                forget_frames(error)
                # `context.abort` would raise an exception that grpc keeps beside the call, and whose traceback
                # keeps this frame with the request.
                context.set_code(call.code)
                context.set_details(call.text)
            finally:
                metrics.GRPC_REQUESTS_IN_FLIGHT.dec()
                self._report(call)
            return None  # grpc discards the response of a call whose status is not OK

        def encode(message: Any) -> bytes:  # noqa: ANN401 - what a stream sends; one answer arrives as bytes
            return message if isinstance(message, bytes) else self._encoded(codec, message)

        make = _MAKERS[handler.request_streaming, handler.response_streaming]
        return make(run, None, encode)

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
                f"the response has {len(raw)} bytes; limits.grpc_message allows "
                f"{self._max_message_bytes}: ask for less with a filter, or raise the limit"
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
    """A message with its secrets redacted. The text is made only if the log line is written."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def __repr__(self) -> str:
        return redacted(self._message)


class _Codec(NamedTuple):
    """Decodes a method's requests and encodes its responses."""

    name: MethodName
    decode: Any
    encode: Any

    def decoded(self, raw: bytes) -> Message:
        """Decode and check a request. Raises InvalidArgumentError if it is malformed or a part is too large."""
        if self.name.is_cri:
            check_size(raw)
        try:
            message: Message = self.decode(raw)
        except DecodeError as error:
            raise InvalidArgumentError(
                f"cannot decode the request of {self.name.service}/{self.name.method}: "
                "a field has the wrong type, a string is not UTF-8, or the message is truncated"
            ) from error
        if self.name.is_cri:
            check_parts(message, len(raw))
        return message

    async def decoded_each(self, raw: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        """Decode the messages of a client's stream, one by one."""
        async for piece in raw:
            yield self.decoded(piece)


def _chosen(context: Context) -> tuple[grpc.StatusCode, str]:
    """The code and text that a service set on its context. grpc.aio stores the code as an integer."""
    code: Any = context.code()
    return _BY_NUMBER.get(code, code), context.details() or ""


async def _written(answer: Any, context: Context) -> None:  # noqa: ANN401 - a coroutine, or grpc's own generator
    """A streaming method's answer, written to its end."""
    if hasattr(answer, "__aiter__"):
        # grpc's reflection is an async generator. Close it in this task if the client disconnects
        # between two messages; else the event loop closes it later, in another task.
        async with aclosing(answer):
            async for piece in answer:
                await context.write(piece)
    else:
        await answer


_MAKERS: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""By whether requests and responses are streams."""
