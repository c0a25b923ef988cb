// The compiled half of Boost.Asio, built once here (BOOST_ASIO_SEPARATE_COMPILATION) and not in every file that uses
// it.
#include <utility>

#include <boost/asio/impl/src.hpp>
