"""An application to watch from outside: its metrics are at `/metrics/`, and its pool is small.

Start   LEAKGUARD_MODE=development uvicorn examples.observability.application:app
Try     curl http://127.0.0.1:8000/items/1
        curl http://127.0.0.1:8000/slow/items/1
        curl http://127.0.0.1:8000/kept/items/1
        curl http://127.0.0.1:8000/metrics/
See     An item, the same after half a second and once more, and the metrics. The third request
        costs a connection, which leakguard reports: its session is kept, as a cache would do it
        that keeps what a session has loaded. After five of these the pool is empty.
"""

import time
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, sessionmaker

from examples.database import Item, database
from leakguard import LeakGuardMiddleware, metrics_app

engine = create_engine(
    f"sqlite:///{database()}",
    pool_size=3,
    max_overflow=2,
    pool_timeout=1,
    pool_logging_name="main",
)
SessionLocal = sessionmaker(engine)
kept: list[Session] = []


def get_db() -> Iterator[Session]:
    with SessionLocal() as db:
        yield db


app = FastAPI()
app.mount("/metrics", metrics_app())
app.add_middleware(LeakGuardMiddleware)


@app.get("/items/{item_id}")
def read_item(item_id: int, db: Annotated[Session, Depends(get_db)]) -> dict[str, object]:
    return show(db, item_id)


@app.get("/slow/items/{item_id}")
def read_item_slowly(
    item_id: int, db: Annotated[Session, Depends(get_db)], seconds: float = 0.5
) -> dict[str, object]:
    item = show(db, item_id)
    time.sleep(seconds)  # another service is asked, and the connection is kept meanwhile
    return item


@app.get("/kept/items/{item_id}")
def read_item_and_keep_it(item_id: int) -> dict[str, object]:
    db = SessionLocal()  # leak
    kept.append(db)
    return show(db, item_id)


def show(db: Session, item_id: int) -> dict[str, object]:
    item = db.scalars(select(Item).where(Item.id == item_id)).one()  # checkout
    return {"id": item.id, "name": item.name}
