// Package fault holds no code: its tests play what goes wrong around a deployment
// on a real HAProxy, with HTTP servers as instances. docs/faults.md is their table.
package fault
