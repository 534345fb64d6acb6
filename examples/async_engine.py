"""An async engine without any session: connections taken by hand.

Start   LEAKGUARD_MODE=development uvicorn examples.async_engine:app
Try     curl http://127.0.0.1:8000/items/1
        curl http://127.0.0.1:8000/items/404
        curl http://127.0.0.1:8000/forgetful/items/404
See     An item, then two errors 500. The last one costs a connection, which leakguard reports:
        `close()` is there, but nobody reaches it when the statement before it raises.
"""

from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine

from examples.database import Item, database
from leakguard import LeakGuardMiddleware

engine = create_async_engine(f"sqlite+aiosqlite:///{database()}")

app = FastAPI()
app.add_middleware(LeakGuardMiddleware)


@app.get("/items/{item_id}")
async def read_item(item_id: int) -> dict[str, object]:
    async with engine.connect() as connection:
        found = await connection.execute(select(Item.name).where(Item.id == item_id))
        return {"id": item_id, "name": found.scalar_one()}


@app.get("/forgetful/items/{item_id}")
async def read_item_and_forget(item_id: int) -> dict[str, object]:
    connection = await engine.connect()  # checkout
    found = await connection.execute(select(Item.name).where(Item.id == item_id))
    name = found.scalar_one()
    await connection.close()
    return {"id": item_id, "name": name}
