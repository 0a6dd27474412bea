"""The API as an OpenAPI 3.1 document. A test compares it with the routes that the server really has.

Each part of the API is a module here with two functions: ``paths()``, its operations by path and method, and
``schemas()``, the JSON values that it names. A new part is one such module and one line in `document`.
"""

from .document import document

__all__ = ["document"]
