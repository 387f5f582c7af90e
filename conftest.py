"""`pytest --impl=reference|student|DIR` lets the tests judge somebody else's block pool: see the plugin."""

pytest_plugins = ["minipage.learn.pytest_plugin"]
