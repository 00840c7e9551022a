"""The one model."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from services.gateway.authorization import bearer
from services.gateway.errors import Refusal
from services.gateway.front import Front, front_of

# When the published weights came out; clients sort by it.
CREATED = 1_765_000_000

router = APIRouter(prefix="/v1", tags=["models"])


class Model(BaseModel):
    """A model, as OpenAI's clients know it."""

    id: str
    object: Literal["model"] = "model"
    created: int = CREATED
    owned_by: str = "chroma-mesh"


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]


def check_model(front: Front, name: str | None) -> None:
    """Refuses another model than the one that is there."""
    if name != front.settings.model_name:
        raise Refusal(
            404,
            "invalid_request_error",
            f"there is one model, {front.settings.model_name!r}, got {name!r}",
            "model",
            "model_not_found",
        )


@router.get("/models")
async def list_models(request: Request) -> ModelList:
    """The one model."""
    front = front_of(request)
    await front.mesh(bearer(request)).voices()  # who may not ask for these may not ask at all
    return ModelList(data=[Model(id=front.settings.model_name)])


@router.get("/models/{model}")
async def get_model(request: Request, model: str) -> Model:
    """The one model, by its name."""
    front = front_of(request)
    await front.mesh(bearer(request)).voices()
    check_model(front, model)
    return Model(id=model)
