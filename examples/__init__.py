"""Small applications to read and to start, each with one thing to see.

They are in the order in which to read them; every file says how to start it:

1. `with_finally`: a session from a dependency, closed whatever happens.
2. `without_finally`: the same without `finally`. An endpoint that raises takes a connection along.
3. `async_finally`: both once more, with `AsyncSession`.
4. `async_engine`: an async engine without any session.
5. `starlette_alone`: Starlette without FastAPI.
6. `existing`: an application of several files, and the one line that adds leakguard to it.
7. `job`: a script without any web application.
8. `observability`: an application to watch from outside, with rules, alerts and a dashboard.

`demo` drives the first two over HTTP and shows what happens: `./scripts/demo`.
"""
