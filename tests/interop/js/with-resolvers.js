// js-libp2p asks for Node 22; Node 20 lacks only this (ECMAScript 2024). Import it before everything else.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new Promise((...both) => { [resolve, reject] = both })
  return { promise, resolve, reject }
}
