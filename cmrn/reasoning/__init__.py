"""Premises and questions in, answers out, with proofs that can be checked step by step."""
