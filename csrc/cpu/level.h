// What the levels of both hierarchies are made of.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels.h"
#include "memory.h"

namespace elastofast {

// Fixed dofs of a level, by layer (in two dimensions: row) along axis 0.
struct FixedDofs {
  std::vector<int> row;                  // offsets, n0 + 1
  std::vector<std::pair<int, int>> dof;  // component, place in the layer
  void collect(const std::vector<uint8_t>& mask, int n0, int layer) {
    const int components = int(mask.size() / (size_t(n0) * layer));
    row.assign(1, 0);
    dof.clear();
    for (int j = 0; j < n0; ++j) {
      for (int k = 0; k < components; ++k)
        for (int i = 0; i < layer; ++i)
          if (mask[(size_t(k) * n0 + j) * layer + i]) dof.push_back({k, i});
      row.push_back(int(dof.size()));
    }
  }
  void add(size_t number, int n0, int layer) {
    const size_t n = size_t(n0) * layer;
    const int j = int(number % n / layer);
    dof.insert(dof.begin() + row[j + 1], {int(number / n), int(number % layer)});
    for (int r = j + 1; r <= n0; ++r) ++row[r];
  }
  template <class T>
  void clear(Rows<T> field, int begin, int end) const {
    for (int j = begin; j < end; ++j)
      for (int e = row[j]; e < row[j + 1]; ++e) field.row(dof[e].first, j)[dof[e].second] = T(0);
  }
  template <class T>
  void clear(T* field, int n0, int layer, int begin, int end) const {
    clear(Rows<T>::field(field, n0, layer), begin, end);
  }
};

// A level vector of several planes, with room around them, because kernels read past the edges.
struct Field {
  Floats memory;
  float* data = nullptr;
  void allocate(size_t values, size_t pad) {
    memory.assign(values + 2 * pad, 0.f);
    data = memory.data() + pad;
  }
};

}  // namespace elastofast
