"""Without `finally`: an endpoint that raises takes a connection along.

Start   LEAKGUARD_MODE=development uvicorn examples.without_finally:app
Try     curl http://127.0.0.1:8000/items/1
        curl http://127.0.0.1:8000/items/404
See     An item, then an error 500. With the second request, the server's terminal shows what
        leakguard found: a connection that was not given back, the line below that constructed
        its session, the line that took it from the pool, the cause and the fix.

Compare `with_finally.py`, where only `get_db` differs.
"""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, sessionmaker

from examples.database import Item, database
from leakguard import LeakGuardMiddleware

engine = create_engine(f"sqlite:///{database()}")
SessionLocal = sessionmaker(engine)


def get_db() -> Iterator[Session]:
    db = SessionLocal()  # leak
    yield db
    db.close()


app = FastAPI()
app.add_middleware(LeakGuardMiddleware)


@app.get("/items/{item_id}")
def read_item(item_id: int, db: Annotated[Session, Depends(get_db)]) -> dict[str, object]:
    item = db.scalars(select(Item).where(Item.id == item_id)).one()  # checkout
    return {"id": item.id, "name": item.name}
