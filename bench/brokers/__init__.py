"""The parts of `bench/broker.py`: the brokers compared, and small clients of them on plain sockets."""
