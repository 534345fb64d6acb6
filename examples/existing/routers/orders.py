"""Buying."""

from fastapi import APIRouter, HTTPException

from examples.existing.db import SessionLocal
from examples.existing.models import Item, Order

router = APIRouter(prefix="/items/{item_id}/orders")


@router.post("", status_code=201)
def place_order(item_id: int) -> dict[str, int]:
    db = SessionLocal()  # leak
    item = db.get_one(Item, item_id)  # checkout
    if item.stock == 0:
        raise HTTPException(409, "sold out")
    item.stock -= 1
    order = Order(item_id=item_id)
    db.add(order)
    db.flush()
    number = order.id
    db.commit()
    db.close()
    return {"order": number}
