"""With and without `finally` in asynchronous code: an `AsyncSession` from a dependency.

Start   LEAKGUARD_MODE=development uvicorn examples.async_finally:app
Try     curl http://127.0.0.1:8000/items/1
        curl http://127.0.0.1:8000/items/404
        curl http://127.0.0.1:8000/without-finally/items/404
See     An item, then two errors 500. The last one costs a connection, and leakguard reports it
        with the lines below, although SQLAlchemy runs them in a stack of its own. (When the
        garbage collector finds the session, SQLAlchemy complains, too, without any line.)
"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from examples.database import Item, database
from leakguard import LeakGuardMiddleware

engine = create_async_engine(f"sqlite+aiosqlite:///{database()}")
SessionLocal = async_sessionmaker(engine)


async def get_db() -> AsyncIterator[AsyncSession]:
    db = SessionLocal()
    try:
        yield db
    finally:
        await db.close()


async def get_db_without_finally() -> AsyncIterator[AsyncSession]:
    db = SessionLocal()  # leak
    yield db
    await db.close()


app = FastAPI()
app.add_middleware(LeakGuardMiddleware)


@app.get("/items/{item_id}")
async def read_item(
    item_id: int, db: Annotated[AsyncSession, Depends(get_db)]
) -> dict[str, object]:
    item = (await db.scalars(select(Item).where(Item.id == item_id))).one()
    return {"id": item.id, "name": item.name}


@app.get("/without-finally/items/{item_id}")
async def read_item_without_finally(
    item_id: int, db: Annotated[AsyncSession, Depends(get_db_without_finally)]
) -> dict[str, object]:
    item = (await db.scalars(select(Item).where(Item.id == item_id))).one()  # checkout
    return {"id": item.id, "name": item.name}
