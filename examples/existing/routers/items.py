"""What there is to buy."""

from typing import Annotated

from fastapi import APIRouter, Depends
from sqlalchemy import select
from sqlalchemy.orm import Session

from examples.existing.db import get_db
from examples.existing.models import Item

router = APIRouter(prefix="/items")


@router.get("")
def list_items(db: Annotated[Session, Depends(get_db)]) -> list[str]:
    return [item.name for item in db.scalars(select(Item).order_by(Item.id))]
