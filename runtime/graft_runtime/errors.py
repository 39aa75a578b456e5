"""The faults that Graft tells its users about: a stable code, what is wrong, and what to do.

The same text appears in the log, in the HTTP body and in the condition of the resource:

    adapter `sql` has rank 128, the pool takes at most 64 (spec.engine.maxRank)

    hint: train with r ≤ 64 or raise spec.engine.maxRank   [code: RankTooHigh]

Imported by both programs: no dependency but the standard library.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, StrEnum


class Recovery(Enum):
    """What ends a fault."""

    BY_ITSELF = "passes by itself"
    """Nobody needs to act; it is tried again."""
    OUTSIDE = "may change outside the pool"
    """A person must act at the source or on the machine; it is tried again, since nobody tells a pod of that."""
    AT_SOURCE = "needs other files at the source"
    """A person must put other files there; the same ones would end the same, so only the source is looked at again."""
    BY_A_PERSON = "needs a person"
    """A person must act on the pool or the request; trying the same again would end the same."""


class ErrorCode(StrEnum):
    """Stable codes, and all that both programs decide by them. Also the `reason` of an adapter in a pool's status."""

    recovery: Recovery
    """What ends it: pods try again by it, and the pool is Reconciling or Stalled by it."""
    http_status: int
    """On either port. Clients try 409, 429 and 5xx again, and nothing else."""

    def __new__(cls, text: str, recovery: Recovery = Recovery.BY_A_PERSON, http_status: int | None = None) -> ErrorCode:
        code = str.__new__(cls, text)
        code._value_ = text
        code.recovery = recovery
        code.http_status = http_status or (503 if recovery is Recovery.BY_ITSELF else 400)
        return code

    @property
    def passes(self) -> bool:
        """Tell whether nobody needs to act."""
        return self.recovery is Recovery.BY_ITSELF

    @property
    def retried(self) -> bool:
        """Tell whether trying the same again may end otherwise."""
        return self.recovery in {Recovery.BY_ITSELF, Recovery.OUTSIDE}

    @property
    def may_change_at_source(self) -> bool:
        """Tell whether other files at the source would end it."""
        return self.recovery in {Recovery.AT_SOURCE, Recovery.OUTSIDE}

    # sources
    NOT_FOUND = "NotFound", Recovery.OUTSIDE
    """The source holds nothing under this URI and revision."""
    UNAUTHORIZED = "Unauthorized", Recovery.OUTSIDE
    """The source refused our credentials, or wants some."""
    TOKEN_NOT_BOUND = "TokenNotBound", Recovery.OUTSIDE
    """A source's Secret does not say that its token is for the source's host, or holds one that may go nowhere."""
    UNREADABLE = "Unreadable", Recovery.OUTSIDE
    """Files of a mounted source that the pod's user may not read."""
    SOURCE_NOT_DECLARED = "SourceNotDeclared"
    """The URI lies outside spec.sources and the schemes that the administrator allows."""
    FORBIDDEN_ADDRESS = "ForbiddenAddress", Recovery.OUTSIDE
    """The source's host is not public, nor in a network that the administrator allows, or is none of his hosts."""
    SOURCE_UNAVAILABLE = "SourceUnavailable", Recovery.BY_ITSELF
    """The source did not answer or broke off; it is tried again."""
    DIGEST_MISMATCH = "DigestMismatch", Recovery.OUTSIDE
    """The bytes are not those that the digest names."""
    NO_CAPACITY = "NoCapacity", Recovery.BY_ITSELF
    """The cache or memory has no room for it."""
    ALL_PLACES_PINNED = "AllPlacesPinned"
    """Pinned adapters hold every place on the device, up to spec.engine.maxMountedAdapters."""
    # checkpoints
    NOT_AN_ADAPTER = "NotAnAdapter", Recovery.OUTSIDE
    """The directory holds no adapter_config.json beside adapter_model.safetensors."""
    NOT_A_MODEL = "NotAModel", Recovery.OUTSIDE
    """The directory holds no Hugging Face text model that can be loaded."""
    UNSAFE_FILE = "UnsafeFile", Recovery.OUTSIDE
    """A pickle, a link, a path that leaves the directory, code that would have to be run, a bomb."""
    CORRUPT = "Corrupt", Recovery.AT_SOURCE
    """A file is truncated, malformed or holds values that are not finite."""
    UNSUPPORTED_METHOD = "UnsupportedMethod", Recovery.AT_SOURCE
    """A PEFT method, or an option of one, that Graft does not serve."""
    INVALID_CONFIG = "InvalidConfig", Recovery.AT_SOURCE
    """adapter_config.json has a value that has no meaning."""
    TOO_LARGE = "TooLarge", Recovery.OUTSIDE
    """The adapter's files have more bytes than the pool takes (spec.cache.adapterSize)."""
    TOO_COSTLY = "TooCostly", Recovery.AT_SOURCE
    """What the adapter needs of the base's weights takes longer to compute than loading one may take."""
    RANK_TOO_HIGH = "RankTooHigh", Recovery.AT_SOURCE
    """The rank is over the pool's spec.engine.maxRank."""
    MODULE_MISSING = "ModuleMissing", Recovery.AT_SOURCE
    """The adapter names modules that the base model does not have."""
    SHAPE_MISMATCH = "ShapeMismatch", Recovery.AT_SOURCE
    """Tensors of the adapter do not fit the modules of the base model."""
    BASE_MISMATCH = "BaseMismatch", Recovery.AT_SOURCE
    """The adapter was trained for another base model: nothing of it fits."""
    TOKENIZER_MISMATCH = "TokenizerMismatch", Recovery.AT_SOURCE
    """The adapter's own tokenizer makes token ids that neither the adapter nor the base has rows for."""
    NOT_SCALABLE = "NotScalable", Recovery.AT_SOURCE
    """The entry has a scale other than 1, which means nothing for what the adapter does to the base's weights."""
    NO_EFFECT = "NoEffect", Recovery.AT_SOURCE
    """The adapter changes nothing: every delta is zero."""
    CHECK_FAILED = "CheckFailed", Recovery.AT_SOURCE
    """The adapter does not answer its `check` as expected."""
    MERGE_OUTDATED = "MergeOutdated"
    """The pod has merged another version of the adapter than its set names by now: the pod must be replaced."""
    POOL_IS_MERGED = "PoolIsMerged"
    """The pool serves its merge alone, and the adapter is no part of it."""
    # the adapter set
    RESOLVING = "Resolving", Recovery.BY_ITSELF
    """The exact version of the source is not known yet."""
    LOADING = "Loading", Recovery.BY_ITSELF
    """On its way: being fetched, checked or mounted."""
    STALE_GENERATION = "StaleGeneration", Recovery.BY_ITSELF, 409
    """An adapter set that is older than the one in force, or a different one of the same generation."""
    UNSUPPORTED_CONTRACT_VERSION = "UnsupportedContractVersion"
    """Operator and pod speak different versions of the contract between them."""
    WRONG_POOL = "WrongPool", Recovery.BY_ITSELF, 409
    """An adapter set or a token that was made for another pod or pool."""
    # the resource
    INVALID_SPEC = "InvalidSpec"
    """The spec of an AdapterDeployment breaks its schema or a rule of it."""
    INVALID_POD_TEMPLATE = "InvalidPodTemplate"
    """spec.podTemplate makes no valid pod."""
    FIELD_NOT_ALLOWED = "FieldNotAllowed"
    """spec.podTemplate holds a field, or a value, that only the administrator can allow."""
    # requests
    INVALID_REQUEST = "InvalidRequest"
    """A request that can never succeed as it stands."""
    BODY_TOO_LARGE = "BodyTooLarge", Recovery.BY_A_PERSON, 413
    """A request's body has more bytes than one may."""
    UNKNOWN_MODEL = "UnknownModel", Recovery.BY_A_PERSON, 404
    """`model` names nothing that this pool serves."""
    UNSUPPORTED_PARAMETER = "UnsupportedParameter"
    """A parameter that is known and not supported."""
    CONTEXT_TOO_LONG = "ContextTooLong"
    """Prompt and answer do not fit the context."""
    NO_CHAT_TEMPLATE = "NoChatTemplate"
    """Chat was asked of a name that has no chat template."""
    NOT_GENERATIVE = "NotGenerative"
    """Text was asked of a base model that classifies or embeds."""
    NOT_COMPOSABLE = "NotComposable"
    """The adapters that a request names can't answer together."""
    NOT_READY = "NotReady", Recovery.BY_ITSELF
    """Not ready yet; try again."""
    OVER_SHARE = "OverShare", Recovery.BY_ITSELF, 429
    """As many requests to this name wait as may while others are asked as well; try again."""
    OVERLOADED = "Overloaded", Recovery.BY_ITSELF
    """Too many requests wait already; try again."""
    SHUTTING_DOWN = "ShuttingDown", Recovery.BY_ITSELF
    """This pod is going away; try again."""
    UNAUTHENTICATED = "Unauthenticated", Recovery.BY_A_PERSON, 401
    """The control port was called without a valid token, or the API of a pool that asks for keys without one."""
    FORBIDDEN = "Forbidden", Recovery.BY_A_PERSON, 403
    """An API key that may not use the name that the request asks for."""
    RATE_LIMITED = "RateLimited", Recovery.BY_ITSELF, 429
    """An API key that has had its requests of this minute; try again."""
    INTERNAL = "Internal", Recovery.OUTSIDE, 500
    """A fault of Graft itself."""


MAX_CHARACTERS = 4000
"""Of one part of an error. What it quotes may be a stranger's, and it is kept in every status, log and answer."""
MAX_DETAILS = 16
MAX_DETAIL_CHARACTERS = 500


class GraftError(Exception):
    """A fault with a stable code, told so that a person can act on it. Each part is cut to what can be shown.

    Args:
        code: the stable code.
        what: what is wrong, which field or value, what was expected; one sentence without a full stop.
        details: further lines, one fault each, shown indented under `what`.
        hint: what to do about it.
        field: the request parameter or resource field at fault, where there is one.
        retry_after: seconds after which trying again may help, where they can be told.
    """

    def __init__(
        self,
        code: ErrorCode,
        what: str,
        *,
        details: Sequence[str] = (),
        hint: str | None = None,
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.code = code
        self.what = cut(what)
        self.details = tuple(cut(detail, MAX_DETAIL_CHARACTERS) for detail in details[:MAX_DETAILS])
        self.hint = hint and cut(hint)
        self.field = field and cut(field, MAX_DETAIL_CHARACTERS)
        self.retry_after = retry_after
        super().__init__(self.what)

    def again(self) -> GraftError:
        """Return the same fault as nobody has raised it yet, to be kept, or to be raised by who has kept it.

        Python adds to an error all that those held who raised it: files, bodies of requests, connections.
        """
        return GraftError(
            self.code,
            self.what,
            details=self.details,
            hint=self.hint,
            field=self.field,
            retry_after=self.retry_after,
        )

    @property
    def message(self) -> str:
        """Return the whole text without the code: what, the details, the hint."""
        lines = [self.what, *(f"  {detail}" for detail in self.details)]
        if self.hint:
            lines += ["", f"hint: {self.hint}"]
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.message}   [code: {self.code}]"


def context_too_long(context: str, what: str, field: str) -> GraftError:
    """Return the fault of a prompt that the context has no room for, in the words that clients look for.

    Args:
        context: what it holds, as in `512 tokens`.
        what: the prompt comes to.
        field: of the request, which holds it.
    """
    return GraftError(
        ErrorCode.CONTEXT_TOO_LONG,
        f"This model's maximum context length is {context}. However, {what}",
        hint="shorten the prompt or lower max_tokens; spec.engine.maxSequenceLength may allow more",
        field=field,
    )


def cut(text: str, limit: int = MAX_CHARACTERS) -> str:
    """Return the beginning of a text, as text that can be encoded; `…` stands for what is left out."""
    kept = text if len(text) <= limit else text[: limit - 1] + "…"
    return kept.encode(errors="replace").decode()


def shown(faults: Sequence[str], limit: int = 5) -> tuple[str, ...]:
    """Return the first `limit` faults, and how many more there are."""
    if len(faults) <= limit:
        return tuple(faults)
    return (*faults[:limit], f"… and {len(faults) - limit} more")
