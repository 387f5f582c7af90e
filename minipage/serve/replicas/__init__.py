"""Several servers behind one port: `minipage serve --data-parallel-size N`.

routing.py   who gets a request: the replica that has its prefix, unless it is overloaded
front.py     what clients talk to: it hands each request on, again if its replica is lost
on_ray.py    the replicas themselves, on Ray Serve
main.py      from options to all of them, and to their end
"""
