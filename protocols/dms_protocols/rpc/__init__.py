"""Requests and answers on a stream: operations, the service, clients, their limits and shares."""
