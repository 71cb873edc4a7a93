// The toolkit's small vectors: dim3, and two to four numbers that are loaded and stored at once.
#pragma once

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;

  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

#define EMULATED_VECTOR(Name, Element, bytes, members, parameters, values) \
  struct alignas(bytes) Name {                                             \
    Element members;                                                       \
  };                                                                       \
  inline Name make_##Name parameters {                                     \
    return values;                                                         \
  }
#define EMULATED_LIST(...) __VA_ARGS__
#define EMULATED_VECTORS(name, T)                                                            \
  EMULATED_VECTOR(name##2, T, 2 * sizeof(T), EMULATED_LIST(x, y), (T x, T y),                \
                  EMULATED_LIST({x, y}))                                                     \
  EMULATED_VECTOR(name##4, T, sizeof(T) < 8 ? 4 * sizeof(T) : 16, EMULATED_LIST(x, y, z, w), \
                  (T x, T y, T z, T w), EMULATED_LIST({x, y, z, w}))

EMULATED_VECTORS(char, signed char)
EMULATED_VECTORS(uchar, unsigned char)
EMULATED_VECTORS(short, short)
EMULATED_VECTORS(ushort, unsigned short)
EMULATED_VECTORS(int, int)
EMULATED_VECTORS(uint, unsigned)
EMULATED_VECTORS(float, float)
EMULATED_VECTORS(longlong, long long)
EMULATED_VECTORS(ulonglong, unsigned long long)
EMULATED_VECTORS(double, double)

#undef EMULATED_VECTORS
#undef EMULATED_LIST
#undef EMULATED_VECTOR
