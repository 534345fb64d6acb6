"""A job outside of any web application: `LeakGuard.scope` says where it begins and ends.

Start   python -m examples.job
See     Two jobs count the items. The first one closes its session; the second one does not, and
        leakguard reports it when its scope ends. In a worker (Celery, arq, a consumer of a queue)
        the scope goes around the call of each task.
"""

from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import sessionmaker

from examples.database import Item, database
from leakguard import LeakGuard

engine = create_engine(f"sqlite:///{database()}")
SessionLocal = sessionmaker(engine)
COUNT = select(func.count()).select_from(Item)

guard = LeakGuard(mode="development")


def tidy_job() -> None:
    with guard.scope("tidy job"), SessionLocal() as db:
        print(f"tidy job: {db.scalar(COUNT)} item")


def forgetful_job() -> None:
    with guard.scope("forgetful job"):
        db = SessionLocal()  # leak
        print(f"forgetful job: {db.scalar(COUNT)} item")  # checkout


if __name__ == "__main__":
    with guard:
        tidy_job()
        forgetful_job()
