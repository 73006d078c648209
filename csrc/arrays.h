// Checks of the arrays that Python hands over. Nothing is converted: the result would be written into the copy and lost.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "cell.h"

namespace elastofast {

namespace py = pybind11;

using Shape = std::initializer_list<py::ssize_t>;

inline std::string shape_text(const py::ssize_t* lengths, size_t count) {
  std::string text = "(";
  for (size_t k = 0; k < count; ++k) text += std::to_string(lengths[k]) + (count == 1 ? "," : k + 1 < count ? ", " : "");
  return text + ")";
}

// Raises TypeError for a wrong dtype, ValueError for a wrong shape or layout.
template <class T>
void check_array(const py::array& a, const char* name, Shape shape, bool written) {
  const py::dtype dtype = py::dtype::of<T>();
  const bool same_dtype = py::isinstance<py::array_t<T>>(a);
  const bool same_shape = size_t(a.ndim()) == shape.size() && std::equal(shape.begin(), shape.end(), a.shape());
  const int layout = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  const bool contiguous = (a.flags() & layout) == layout;
  if (same_dtype && same_shape && contiguous && (!written || a.writeable())) return;
  const std::string wanted = std::string(written ? "a writeable " : "a ") + "C-contiguous array of " +
                             std::string(py::str(dtype)) + " and shape " + shape_text(shape.begin(), shape.size());
  const std::string found = std::string(py::str(a.dtype())) + " and shape " + shape_text(a.shape(), size_t(a.ndim())) +
                            (contiguous ? "" : ", not C-contiguous and aligned") +
                            (!written || a.writeable() ? "" : ", read-only");
  const std::string message = std::string(name) + " must be " + wanted + ", got one of " + found;
  if (!same_dtype) throw py::type_error(message);
  throw py::value_error(message);
}

template <class T>
const T* input(const py::array& a, const char* name, Shape shape) {
  check_array<T>(a, name, shape, false);
  return static_cast<const T*>(a.data());
}

template <class T>
T* output(py::array& a, const char* name, Shape shape) {
  check_array<T>(a, name, shape, true);
  return static_cast<T*>(a.mutable_data());
}

inline void require(bool fits, const char* message) {
  if (!fits) throw py::value_error(message);
}

inline void check_deflated_dof(long dof, const uint8_t* fixed, long dofs) {
  require(dof == -1 || (dof >= 0 && dof < dofs && fixed[dof]), "deflated_dof must be -1 or the number of a fixed dof");
}

// So that numbers of dofs, and eight times the nodes of a row, are an int. Numbers of matrix entries may be larger.
constexpr long kMostNodes = 1L << 28;

inline FormSpec form_spec(int n0, int n1, double h0, double h1, double lambda, double mu, bool reduced) {
  require(n0 >= 2 && n1 >= 2, "a grid must have at least 2 x 2 nodes");
  require(n1 <= kMostNodes / n0, "a grid may have up to 2^28 = 268435456 nodes");
  return {n0, n1, h0, h1, lambda, mu, reduced};
}

// Length of an array's first axis, which has to be the batch.
inline py::ssize_t batch_of(const py::array& a) { return a.ndim() ? a.shape(0) : 0; }

}  // namespace elastofast
