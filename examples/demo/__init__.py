"""The demonstration: what `finally` is for, observed on live requests.

Start   ./scripts/demo
or      python -m examples.demo, with leakguard, FastAPI, uvicorn and rich installed

`application` puts the two examples on a server (`server`), `observation` watches one request at a
time from outside, `lifecycle` and `shortage` are the two experiments, `screen` draws what they saw
and `claims` compares it with what the texts say.
"""
