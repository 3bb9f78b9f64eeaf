package state

import (
	"cmp"

	"github.com/tidwall/btree"
)

// Table is one ordered table of the state. Forking is O(1): the copy shares nodes with the
// original until one of them writes. Values are pointers to structs that nobody changes after
// they were set; an update sets a new one.
//
// One goroutine may write a table; a fork that nobody writes may be read by any number.
type Table[K cmp.Ordered, V any] struct {
	m *btree.Map[K, V]
}

// tableDegree trades copying (each batch copies the nodes it touches) against depth.
const tableDegree = 16

func newTable[K cmp.Ordered, V any]() Table[K, V] {
	return Table[K, V]{m: btree.NewMap[K, V](tableDegree)}
}

func (t Table[K, V]) fork() Table[K, V] { return Table[K, V]{m: t.m.Copy()} }

// Get returns the value under k.
func (t Table[K, V]) Get(k K) (V, bool) { return t.m.Get(k) }

// Has reports whether there is a value under k.
func (t Table[K, V]) Has(k K) bool {
	_, ok := t.m.Get(k)
	return ok
}

// Len is the number of rows.
func (t Table[K, V]) Len() int { return t.m.Len() }

// All calls fn in ascending order of keys until it returns false.
func (t Table[K, V]) All(fn func(K, V) bool) { t.m.Scan(fn) }

// From calls fn in ascending order, beginning with the first key that is not less than k, until
// it returns false.
func (t Table[K, V]) From(k K, fn func(K, V) bool) { t.m.Ascend(k, fn) }

func (t Table[K, V]) set(k K, v V) { t.m.Set(k, v) }
func (t Table[K, V]) del(k K)      { t.m.Delete(k) }
