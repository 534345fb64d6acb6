"""The one table that every database of the suite has."""

from __future__ import annotations

from sqlalchemy import Engine, String
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

ROWS = 50


class Base(DeclarativeBase):
    """The base of the suite's models."""


class Item(Base):
    """Something to read, to change and to stream."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))


def make_tables(engine: Engine) -> None:
    """Create the table with `ROWS` rows in it."""
    Base.metadata.create_all(engine)
    with Session(engine) as db, db.begin():
        db.add_all(Item(name=f"item {number}") for number in range(ROWS))
