"""Starlette without FastAPI: the same line adds leakguard, and there are leaks enough.

Start   LEAKGUARD_MODE=development uvicorn examples.starlette_alone:app
Try     curl http://127.0.0.1:8000/items/1
        curl http://127.0.0.1:8000/items/404
        curl http://127.0.0.1:8000/forgetful/items/1
        curl http://127.0.0.1:8000/forgetful/items/404
See     An item and an error 404, twice. Only the last one costs a connection: it returns early,
        before `close()`. leakguard reports it, although no exception was raised.
"""

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from examples.database import Item, database
from leakguard import LeakGuardMiddleware

engine = create_engine(f"sqlite:///{database()}")
SessionLocal = sessionmaker(engine)


def read_item(request: Request) -> JSONResponse:
    with SessionLocal() as db:
        return answer(db.get(Item, request.path_params["item_id"]))


def read_item_and_forget(request: Request) -> JSONResponse:
    db = SessionLocal()  # leak
    item = db.get(Item, request.path_params["item_id"])  # checkout
    if item is None:
        return answer(None)
    response = answer(item)
    db.close()
    return response


def answer(item: Item | None) -> JSONResponse:
    if item is None:
        return JSONResponse({"error": "no such item"}, status_code=404)
    return JSONResponse({"id": item.id, "name": item.name})


app = Starlette(
    routes=[
        Route("/items/{item_id:int}", read_item),
        Route("/forgetful/items/{item_id:int}", read_item_and_forget),
    ]
)
app.add_middleware(LeakGuardMiddleware)
