"""What the tests of federations share: aggregators that are stopped and killed, and sites that answer."""
