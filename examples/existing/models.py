"""What the shop sells, and who wants it."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from examples.existing.db import Base


class Item(Base):
    """Something to sell, as long as there is some of it."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    stock: Mapped[int]


class Order(Base):
    """One piece of an item, sold."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"))
