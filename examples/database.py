"""What the examples share: a SQLite file with one table and one item in it."""

import os
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    """The tables of the examples."""


class Item(Base):
    """Something to ask for: there is one item, its number is 1."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


def database() -> Path:
    """Return the path of the file, which is made where it does not exist.

    `EXAMPLES_DATABASE` names another one than `examples.db` in the working directory.
    """
    path = Path(os.environ.get("EXAMPLES_DATABASE", "examples.db")).absolute()
    engine = create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    with Session(engine) as db, db.begin():
        db.merge(Item(id=1, name="tea"))
    engine.dispose()
    return path
