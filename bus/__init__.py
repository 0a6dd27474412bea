"""The bus: broker, stores, HTTP server and client. Import the module that is meant."""
