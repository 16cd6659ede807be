"""Opens the owner's policies, each behind a gate."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from dms_protocols.bidding.policies import AsyncPolicy
from dms_protocols.bidding.policy_gate import PolicyGate
from dms_resources.tasks import open_background

from .entry_point import EntryPointPolicy
from .executable import ExecutablePolicy
from .processes import PolicyProcesses, open_processes
from .settings import EndpointSettings, EntryPointSettings, ExecutableSettings, PolicySettings

__all__ = ["open_policies"]


@asynccontextmanager
async def open_policies(settings: Sequence[PolicySettings]) -> AsyncIterator[tuple[AsyncPolicy, ...]]:
    """Opens the policies, in their order. Their processes and connections end with the block.

    Raises PolicyError `policy_unusable` if an entry point cannot be loaded.
    """
    async with AsyncExitStack() as stack:
        local = any(not isinstance(one, EndpointSettings) for one in settings)
        processes = await stack.enter_async_context(open_processes()) if local else None
        async with open_background() as nursery:
            policies = [await _open(one, processes, nursery, stack) for one in settings]
            yield tuple(
                PolicyGate(policy, one.describe(), budget=one.budget, max_concurrent=one.max_concurrent)
                for one, policy in zip(settings, policies, strict=True)
            )


async def _open(
    settings: PolicySettings, processes: PolicyProcesses | None, nursery: trio.Nursery, stack: AsyncExitStack
) -> AsyncPolicy:
    if isinstance(settings, EndpointSettings):
        from .endpoint import open_endpoint

        return await stack.enter_async_context(open_endpoint(settings))
    assert processes is not None
    if isinstance(settings, ExecutableSettings):
        return ExecutablePolicy(settings, processes)
    return await _open_entry_point(settings, processes, nursery)


async def _open_entry_point(
    settings: EntryPointSettings, processes: PolicyProcesses, nursery: trio.Nursery
) -> EntryPointPolicy:
    policy = EntryPointPolicy(settings.name, processes)
    # The outdated stubs that libp2p installs (trio-typing) have no fitting task status.
    await nursery.start(policy.keep_worker)  # type: ignore[arg-type]
    for _ in range(settings.max_concurrent - 1):
        nursery.start_soon(policy.keep_worker)
    return policy
