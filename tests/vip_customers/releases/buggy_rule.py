"""The VIP rule has a bug."""

from examples.vip_customers import model


def _buggy(_history: model.History, orderid: str) -> None:
    raise ZeroDivisionError(f"a bug in the VIP rule, met by {orderid}")


model.History.record_order = _buggy  # type: ignore[assignment,method-assign]

from examples.vip_customers.tasks import app  # noqa: E402

__all__ = ["app"]
