"""The database: an engine, a session for each request, the base of the models."""

import os
from collections.abc import Iterator

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

engine = create_engine(os.environ.get("DATABASE_URL", "sqlite:///shop.db"))
SessionLocal = sessionmaker(engine)


class Base(DeclarativeBase):
    """The base of the models."""


def get_db() -> Iterator[Session]:
    with SessionLocal() as db:
        yield db
