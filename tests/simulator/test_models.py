from __future__ import annotations

from typing import get_args

import anthropic.types
import pytest
from anthropic.types.model import Model as SdkModel

from penstock.simulator.models import MODELS, find_model, model_info, model_page
from penstock.simulator.wire import ApiError


def test_every_model_of_the_sdk_is_served() -> None:
    """The ids that the SDK knows are the ids served here."""
    literal, _ = get_args(SdkModel)
    assert set(get_args(literal)) == MODELS.keys()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_model_describes_itself_as_in_the_sdk(name: str) -> None:
    """Its object has every field of the SDK's type."""
    info = anthropic.types.ModelInfo.model_validate(model_info(MODELS[name]))
    assert info.id == name
    assert info.capabilities is not None
    assert info.capabilities.thinking.types.adaptive.supported == ("adaptive" in MODELS[name].thinking)
    assert (info.lifecycle == "deprecated") == (info.retires_at is not None)


def test_older_models_have_no_compaction() -> None:
    """It came with 4.6, and a model says whether it has it."""
    offered = {name: model_info(model)["capabilities"]["context_management"] for name, model in MODELS.items()}
    without = {name for name, edits in offered.items() if not edits["compact_20260112"]["supported"]}
    assert without == {name for name in MODELS if "-4-5" in name}


def test_models_that_share_limits_share_a_pool() -> None:
    """The model classes are those of the rate limits."""
    pools = {
        pool: {name for name, model in MODELS.items() if model.pool == pool}
        for pool in {m.pool for m in MODELS.values()}
    }
    assert pools["opus-4"] >= {"claude-opus-4-5", "claude-opus-4-6", "claude-opus-4-7", "claude-opus-4-8"}
    assert pools["opus-5"] == {"claude-opus-5"}
    assert pools["sonnet-4"] >= {"claude-sonnet-4-5", "claude-sonnet-4-6"}
    assert pools["fable-5"] == {"claude-fable-5", "claude-fable-5-1", "claude-fable-5-2"}
    assert len(pools) == 10


def test_an_unknown_model_is_404() -> None:
    """The message names the model, as the API's does."""
    with pytest.raises(ApiError, match=r"^model: gpt$") as caught:
        find_model("gpt")
    assert (caught.value.status, caught.value.kind) == (404, "not_found_error")


def test_pages_go_forward_and_back() -> None:
    """Cursors move through the list in both directions and end where it ends."""
    names = list(MODELS)
    first = model_page(limit=3, after_id=None, before_id=None)
    assert [each["id"] for each in first["data"]] == names[:3]
    assert (first["has_more"], first["first_id"], first["last_id"]) == (True, names[0], names[2])
    second = model_page(limit=3, after_id=names[2], before_id=None)
    assert [each["id"] for each in second["data"]] == names[3:6]
    back = model_page(limit=2, after_id=None, before_id=names[3])
    assert [each["id"] for each in back["data"]] == names[1:3]
    assert model_page(limit=1000, after_id=None, before_id=None)["has_more"] is False
    for page in (model_page(limit=3, after_id="x", before_id=None), model_page(limit=3, after_id=None, before_id="x")):
        assert (page["data"], page["first_id"], page["has_more"]) == ([], None, False)
