// Plain objects with known fields of known types: what an unknown peer sent is read through these.

export class StructError extends Error {}

const kind = (name, holds) => (value, path) => {
  if (!holds(value)) throw new StructError(`${path} is not ${name}`)
  return value
}

export const text = kind('text', (value) => typeof value === 'string')
export const bool = kind('a boolean', (value) => typeof value === 'boolean')
export const number = kind('a number', (value) => typeof value === 'number')
export const bytes = kind('a byte string', (value) => value instanceof Uint8Array)
// Above 2^53 it is a BigInt, which is encoded as it came.
export const uint = kind('an unsigned integer', (value) => {
  return typeof value === 'bigint' ? value >= 0n : Number.isSafeInteger(value) && value >= 0
})
export const any = (value) => value

export const list = (of) => (value, path) => {
  if (!Array.isArray(value)) throw new StructError(`${path} is not a list`)
  return value.map((one, index) => of(one, `${path}[${index}]`))
}

export const nullable = (of) => (value, path) => value === null ? null : of(value, path)

/** Reads the fields that are named, `optional` ones where they are there, and passes over all others. */
export const struct = (fields, optional = {}) => (value, path = 'message') => {
  if (typeof value !== 'object' || value === null) throw new StructError(`${path} is not a map`)
  const found = {}
  for (const [name, read] of Object.entries({ ...fields, ...optional })) {
    if (Object.hasOwn(value, name)) {
      found[name] = read(value[name], `${path}.${name}`)
    } else if (Object.hasOwn(fields, name)) {
      throw new StructError(`${path}.${name} is missing`)
    }
  }
  return found
}
