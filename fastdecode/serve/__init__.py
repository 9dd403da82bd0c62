"""The HTTP server behind ``fastdecode serve``; needs the extra ``serve``.

app.py has the routes, schema.py what a request may say, service.py requests on their way through the engine.
"""
