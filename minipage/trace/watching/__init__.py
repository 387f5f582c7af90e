"""The engine while it runs, seen by any number of viewers, each at its own pace.

feed.py       what viewers are told: frames and facts, of which a slow viewer gets the newest
watch.py      records an engine while somebody looks, and makes frames of it, as many as cost next to nothing
live_page.py  the trace's page, which shows them as they come
stream.js     reads what the server tells, and pushes frames to the viewer; every live page has it
live.js       what else is on the page of a server
live.css      its looks
"""
