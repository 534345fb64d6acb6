"""An application of several files, as people have them, and leakguard added to it.

Start   LEAKGUARD_MODE=development uvicorn examples.existing.main:app
Try     curl http://127.0.0.1:8000/api/items
        curl -X POST http://127.0.0.1:8000/api/items/1/orders
        curl -X POST http://127.0.0.1:8000/api/items/2/orders
See     Two items, an order, and an error 409, because the second item is sold out. That last
        request costs a connection. leakguard reports it with the line in `routers/orders.py`.

`main.py` has the one line that was added, and its import. Nothing else was touched.
"""
