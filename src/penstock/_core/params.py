"""What `messages.create` takes, as the keywords of whatever passes them on, for type checkers and editors.

The rule here: all of it is optional, and everything that the SDK takes is legal, of `messages` as of `beta.messages`,
its `omit` and `NOT_GIVEN` too. The SDK's own types can't say that: they want a model and messages, and know no
`extra_headers` or `timeout`. What a caller is asked for by name (`model`, `tools`, …) stands in the signatures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, Required, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TypeAlias

    import httpx2
    from anthropic import NotGiven, Omit, types
    from anthropic._types import SequenceNotStr
    from anthropic.types import beta

    Left: TypeAlias = Omit | NotGiven
    ToolEntry: TypeAlias = types.ToolUnionParam | beta.BetaToolUnionParam

__all__ = ["ItemParams", "MoreParams", "RequestParams", "StreamParams"]


class ToolLike(Protocol):
    """A tool of the SDK, which `beta.messages` sends as what it gives."""

    def to_dict(self) -> beta.BetaToolUnionParam:
        """Return its entry."""
        ...


class MoreParams(TypedDict, total=False):
    """Parameters of a request that no part of penstock asks for by name."""

    betas: list[types.AnthropicBetaParam] | Left
    billing_policy: beta.BetaBillingPolicyParam | Left | None
    compaction: beta.BetaCompactionConfigParam | Left | None
    container: types.ContainerParams | beta.BetaContainerParams | str | Left | None
    context_management: beta.BetaContextManagementConfigParam | Left | None
    diagnostics: types.DiagnosticsParam | beta.BetaDiagnosticsParam | Left | None
    extra_body: object
    extra_headers: Mapping[str, str | Omit] | Left | None
    extra_query: Mapping[str, object] | Left | None
    fallback_credit_token: str | beta.BetaFallbackCreditTokenParam | Left | None
    fallbacks: beta.BetaFallbacksParam | Left | None
    inference_geo: str | Left | None
    mcp_servers: Iterable[beta.BetaRequestMCPServerURLDefinitionParam] | Left
    metadata: types.MetadataParam | beta.BetaMetadataParam | Left
    output_config: types.OutputConfigParam | beta.BetaOutputConfigParam | Left
    service_tier: Literal["auto", "standard_only"] | Left
    speed: Literal["standard", "fast"] | Left | None
    stop_sequences: SequenceNotStr[str] | Left
    thinking: types.ThinkingConfigParam | beta.BetaThinkingConfigParam | Left
    thread: beta.BetaMessageThreadParam | Left | None
    timeout: float | httpx2.Timeout | Left | None
    tool_choice: types.ToolChoiceParam | beta.BetaToolChoiceParam | Left
    user_profile_id: str | Left
    workspace_id: str | Left


class RequestParams(MoreParams, total=False):
    """The same, with what instructs the model."""

    cache_control: types.CacheControlEphemeralParam | beta.BetaCacheControlEphemeralParam | Left | None
    system: str | Iterable[types.TextBlockParam | beta.BetaTextBlockParam] | Left


class ItemParams(RequestParams, total=False):
    """Parameters of every request of a run, which has its messages from its items."""

    max_tokens: int | Left | None
    model: types.ModelParam | Left | None
    tools: Iterable[ToolEntry | ToolLike] | Left


class StreamParams(RequestParams, total=False):
    """Parameters of one request, with what the API wants of each."""

    max_tokens: Required[int]
    messages: Required[Iterable[types.MessageParam | beta.BetaMessageParam]]
    model: Required[types.ModelParam]
    output_format: type | Left | None
    tools: Iterable[ToolEntry | ToolLike] | Left
