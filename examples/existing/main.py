"""The application: routers, tables, and leakguard."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from examples.existing.db import Base, SessionLocal, engine
from examples.existing.models import Item
from examples.existing.routers import items, orders
from leakguard import LeakGuardMiddleware


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
    Base.metadata.create_all(engine)
    with SessionLocal.begin() as db:
        db.merge(Item(id=1, name="tea", stock=1000))
        db.merge(Item(id=2, name="coffee", stock=0))
    yield
    engine.dispose()


api = APIRouter(prefix="/api")
api.include_router(items.router)
api.include_router(orders.router)

app = FastAPI(lifespan=lifespan)
app.include_router(api)
app.add_middleware(LeakGuardMiddleware)  # the one line that was added, and its import
