"""The SQLAlchemy source: sessions and pooled connections, acquired, used and given back."""

from leakguard.sources.sqlalchemy.ignore import ignore_engine
from leakguard.sources.sqlalchemy.pools import check_engines
from leakguard.sources.sqlalchemy.source import SQLALCHEMY

__all__ = ["SQLALCHEMY", "check_engines", "ignore_engine"]
